"""A release could be made: what is built holds what it should and nothing else, and says its version in one place."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KINDS = (".py", ".typed", ".jinja", ".html", ".css", ".js", ".md", ".json", ".safetensors")
PACKAGES = ("stage1_vqvae", "stage2_prior", "pipeline")


def tracked() -> list[str]:
    """The files of the checkout, by git."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def modules() -> set[str]:
    """Every file of the three packages that belongs into a wheel."""
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in KINDS}
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == modules()
    assert {name.rpartition("/")[2] for name in info} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "LICENSE",
        "entry_points.txt",
        "top_level.txt",
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "pipeline/runs/published/pretrained/digits/prior/0/model.safetensors" in names


def test_the_sdist_holds_the_checkout(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == {name for name in tracked() if not name.startswith((".git", ".github/"))}


def test_the_version_is_written_once() -> None:
    assert version("gen-images") == PROJECT["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == PROJECT["version"]  # type: ignore[index]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        assert PROJECT["version"] not in path.read_text()


def test_the_oldest_dependencies_are_those_allowed() -> None:
    """`.ci/oldest.txt`, with which the suite runs once, pins what pyproject.toml allows at least."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    least = {re.split(r"[><=,]+", line)[0]: re.split(r"[><=,]+", line)[1] for line in wanted}
    lines = [line for line in (ROOT / ".ci" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert pinned.keys() == least.keys()
    for name, number in pinned.items():
        assert number == least[name] or number.startswith(f"{least[name]}."), name
