"""What README and the pages of docs say is true: examples run, links lead somewhere, the drawing is the code's."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from tests.pipeline.cli.test_cli import TINY, pictures
from tests.pipeline.cli.test_cli import TINY_PRIOR as TINY_PRIOR_FLAGS
from tests.test_imports import PACKAGES, ROOMS, modules
from tests.tiny import TINY_PRIOR, TINY_VQVAE

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [page for page in PAGES if page.name not in ("CHANGELOG.md", "measurements.md", "CONTRIBUTING.md")]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_guide = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len(README.read_bytes()) <= 8 * 1024


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of pictures of cats and dogs, as README has one."""
    pictures(tmp_path / "photos", (16, 16), "RGB")
    for kind, name in (("even", "cat"), ("odd", "dog")):
        (tmp_path / "photos" / kind).rename(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_the_api_does_what_is_shown(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as it stands, but for small networks and pictures, and none on the screen."""
    [shown] = blocks(README, "python")
    for there, here in {
        "max_minutes=30": "**tiny_vqvae",
        "max_minutes=60": "force=True, **tiny_prior",
        '"64"': '"16"',
    }.items():
        assert shown.count(there) == 1
        shown = shown.replace(there, here)
    monkeypatch.setattr("PIL.Image.Image.show", lambda self: self.save(tmp_path / "shown.png"))
    names: dict[str, Any] = {"tiny_vqvae": TINY_VQVAE, "tiny_prior": TINY_PRIOR}
    exec(shown, names)  # noqa: S102 - the code is ours
    assert names["samples"].images.shape == (16, 3, 16, 16)
    assert (tmp_path / "shown.png").exists() and (tmp_path / "out").is_dir()


def commands(page: Path) -> Iterator[list[str]]:
    """Every `gen` command that a page shows, in blocks or in the text, without placeholders in brackets."""
    text = page.read_text()
    shown = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    shown += re.findall(r"`(gen [^`]+)`", text.replace("\n", " "))
    for line in shown:
        for part in line.partition("#")[0].split("&&"):
            found = re.search(r"(?:^|\s)(?:gen|-m pipeline) ([a-z][a-z-]+.*)", part)
            if found and not found[1].startswith("COMMAND"):
                yield shlex.split(re.sub(r"\[(--)?", r"\1", found[1]).replace("]", "").replace("\\|", ","))


@every_guide
def test_the_commands_shown_exist_with_their_flags(page: Path) -> None:
    for name, *arguments in commands(page):
        assert name in main.commands, f"{page.name}: gen {name}"
        flags = {flag for parameter in main.commands[name].params for flag in parameter.opts}
        used = {argument for argument in arguments if argument.startswith("--")}
        assert used <= flags, f"{page.name}: gen {name} has no {used - flags}"


@every_guide
def test_the_flags_named_exist(page: Path) -> None:
    flags = {
        f
        for c in main.commands.values()
        for p in c.params
        if isinstance(p, click.Option)
        for f in (*p.opts, *p.secondary_opts)
    }
    named = set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text()))
    of_others = {"--cpu", "--debug", "--help", "--requeue"}
    assert named <= flags | of_others, f"{page.name}: {named - flags - of_others}"


def test_the_commands_of_readme_run(photos: Path) -> None:
    """As they stand, but for small networks and pictures and few steps."""
    run = [line for line in commands(README) if "--max-minutes" in line or line[:1] == ["sample"]]
    assert [line[0] for line in run[-4:]] == ["train-vqvae", "train-prior", "sample", "sample"]
    for line in run[-4:]:
        if "--max-minutes" in line:
            start = line.index("--max-minutes")
            line[start : start + 2] = TINY if line[0] == "train-vqvae" else [*TINY_PRIOR_FLAGS, "--force"]
        done = CliRunner().invoke(main, ["16" if word == "64" else word for word in line])
        assert done.exit_code == 0, done.output
    for folder in ("seed-0", "seed-0-balanced"):
        assert len(list(Path("runs/photos/samples", folder).glob("0*.png"))) == 16


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> set[str]:
    """All that a page links to; a picture or a licence links to nothing."""
    if page.suffix != ".md":
        return set()
    return set(re.findall(r"\]\(([^)\s]+)\)", page.read_text()))


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_and_picture_is_reached_from_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            local = [link.partition("#")[0] for link in links(page) if not link.startswith("https://")]
            waiting += [(page.parent / link).resolve() for link in local if link]
    files = {path for path in (ROOT / "docs").rglob("*") if path.is_file()}
    assert files | set(PAGES) <= reached


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_names_every_module_and_no_other(package: str) -> None:
    [tree] = [block for block in blocks(ARCHITECTURE) if block.startswith("stage1_vqvae/")]
    lines = f"\n{tree}".split(f"\n{package}/")[1].split("\n")[1:]
    inside = list(takewhile(lambda line: line.startswith("  "), lines))
    named = []
    for line in inside:
        folder = ""
        for name in re.findall(r"[\w/]+\.py", line):
            folder = name.rpartition("/")[0] or folder
            named.append(f"{folder}/{Path(name).name}".lstrip("/"))
    files = {path.relative_to(ROOT / package).as_posix() for path in (ROOT / package).rglob("*.py")}
    assert sorted(named) == sorted(file for file in files if not Path(file).name.startswith("__"))


def room_of(module: str) -> str | None:
    """The room that a module of ours lies in; None for any other module."""
    package, *rest = module.split(".")
    if package != "pipeline":
        return package if package in PACKAGES else None
    return rest[0] if rest and rest[0] in ROOMS else "ground"


def imported_rooms() -> set[tuple[str, str]]:
    """Which room imports which, by the code."""
    arrows = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        if path.parent == ROOT / "pipeline" and path.name.startswith("__"):
            continue  # the face of the package, and the command's door
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        arrows |= {(str(own), room) for name in modules(path) if (room := room_of(name)) not in (None, own)}
    return arrows


def test_the_drawing_is_that_of_the_imports() -> None:
    [drawing] = blocks(ARCHITECTURE, "mermaid")
    drawn = {(a, b) for a, b in re.findall(r"(\w+) --> (\w+)", drawing)}
    found = imported_rooms() - {("ground", "config")}  # the page says why
    assert drawn <= found, "an arrow that no import runs along"

    def reaches(start: str, end: str) -> bool:
        return (start, end) in drawn or any(reaches(b, end) for a, b in drawn if a == start)

    assert all(reaches(a, b) for a, b in found), sorted((a, b) for a, b in found if not reaches(a, b))
    assert not any(reaches(room, room) for room in ROOMS)


def test_the_modules_of_the_page_of_rules_exist() -> None:
    known = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    for name in re.findall(r"`([\w/]+\.py)`", ARCHITECTURE.read_text()):
        assert any(path == name or path.endswith(f"/{name}") for path in known), name


@pytest.mark.parametrize(
    ("before", "after", "exit_code", "is_queued"),
    [
        ("", '{"state": "interrupted", "exit_code": 143}', 0, True),
        ("", '{"state": "failed", "exit_code": 5}', 5, False),
        ("", '{"state": "running", "exit_code": null}', 1, False),  # killed
        ("", "", 1, False),
        ('{"state": "interrupted", "exit_code": 143}', "", 1, False),  # of the job before
    ],
)
def test_the_job_script_queues_again_what_a_signal_stopped_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, exit_code: int, is_queued: bool
) -> None:
    [script] = [block for block in blocks(ROOT / "docs" / "processes.md") if "#SBATCH" in block]
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    if before:
        (tmp_path / "runs" / "photos" / "status.json").write_text(before)
    writes = f"echo '{after}' > runs/photos/status.json" if after else ":"
    for name, does in {"srun": f"{writes}; exit 1", "scontrol": "echo $* > queued"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == exit_code, done.stderr
    assert (tmp_path / "queued").exists() == is_queued
    assert not is_queued or (tmp_path / "queued").read_text() == "requeue 17\n"
