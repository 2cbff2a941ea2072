"""What README says can be typed works."""

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.cli.test_cli import pictures
from tests.tiny import TINY_PRIOR, TINY_VQVAE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_api_does_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as it stands, but for small networks and pictures, and none on the screen."""
    [shown] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for there, here in {
        "max_minutes=30": "**tiny_vqvae",
        "max_minutes=60": "force=True, **tiny_prior",
        '"64"': '"16"',
        "1_000_000": "3",
    }.items():
        assert shown.count(there) == 1
        shown = shown.replace(there, here)
    monkeypatch.setattr("PIL.Image.Image.show", lambda self: self.save(tmp_path / "shown.png"))
    pictures(tmp_path / "photos", (16, 16), "RGB")
    for index in range(12):
        kind = "even" if index % 2 == 0 else "odd"
        renamed = tmp_path / "photos" / {"even": "cat", "odd": "dog"}[kind] / f"{index}.png"
        renamed.parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / kind / f"{index}.png").rename(renamed)
    names: dict[str, Any] = {"tiny_vqvae": TINY_VQVAE, "tiny_prior": TINY_PRIOR}
    exec(shown, names)  # noqa: S102 - the code is ours
    assert names["samples"].images.shape == (16, 3, 16, 16)
    assert sorted(names["scores"].order()) == list(range(16))
    assert (tmp_path / "shown.png").exists() and (tmp_path / "out").is_dir()


@pytest.mark.parametrize("package", ["stage1_vqvae", "stage2_prior", "pipeline"])
def test_the_tree_names_every_module_and_no_other(package: str) -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    lines = tree.split(f"\n{package}/")[1].split("\n")[1:]
    inside = list(takewhile(lambda line: line.startswith("  "), lines))
    named = {Path(name).name for line in inside for name in re.findall(r"[\w/]+\.py", line)}
    modules = {path.name for path in (ROOT / package).rglob("*.py") if not path.name.startswith("__")}
    assert named == modules
