"""What files are called in a .genz file, and what the pictures that come out of it are."""

from collections.abc import Sequence
from pathlib import PurePosixPath


def unfit_names(names: Sequence[str]) -> list[str]:
    """Those that are the name of no file within a folder, or come twice."""
    seen, unfit = set[str](), []
    for name in names:
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) in seen:
            unfit.append(name)
        seen.add(str(path))
    return unfit


def picture_names(names: Sequence[str]) -> list[str]:
    """The same with .png in place of their suffixes, or after them where two would meet, as a.jpg and a.bmp."""
    pictures = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    return pictures if len(set(pictures)) == len(pictures) else [f"{name}.png" for name in names]
