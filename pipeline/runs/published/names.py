"""A run by its name: the path of its folder, pretrained:NAME for what comes with gen, hf://USER/NAME for the Hub's."""

import re
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.runs.published.hub import downloaded

_PRETRAINED = "pretrained:"
_FOLDER = Path(__file__).parent / "pretrained"
_HUB = re.compile(r"hf:/{1,2}(?!/)")  # a Path has made one slash of two


def published_name(run: str | Path) -> str | None:
    """The name of a published run in full; None for the path of a folder."""
    name = str(run)
    if found := _HUB.match(name):
        return f"hf://{name[found.end() :]}"
    return name if name.startswith(_PRETRAINED) else None


def folder_of(run: str | Path) -> Path:
    """The folder of a run; one of the Hub is downloaded unless it is there, and checked by its hashes.

    Raises UsageError where no run that comes with gen has this name, and what `downloaded` raises.
    """
    name = published_name(run)
    if name is None:
        return Path(run)
    if name.startswith(_PRETRAINED):
        return _pretrained(name.removeprefix(_PRETRAINED))
    repository, _, revision = name.removeprefix("hf://").partition("@")
    return downloaded(repository, revision or None)


def _pretrained(name: str) -> Path:
    there = sorted(folder.name for folder in _FOLDER.iterdir() if folder.is_dir())
    if name not in there:
        known = ", ".join(f"{_PRETRAINED}{one}" for one in there)
        raise UsageError(f"no run {_PRETRAINED}{name} comes with gen; there is {known}")
    return _FOLDER / name
