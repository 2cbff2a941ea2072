"""The classes of images, by the folders that they lie in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from pipeline.data.sources.base import natural


@dataclass(frozen=True)
class Labelling:
    """The class of every image of a source, and the names of the classes in the order of their numbers."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    """How images come by their classes: `of` their names, where they have any; and a `key` that says which classes."""

    key: str
    of: Callable[[Sequence[str]], Labelling | None]


def classes_wanted(wanted: bool) -> Classes:
    """The classes by folders, or none."""
    return Classes("folders", label_by_folder) if wanted else Classes("none", lambda names: None)


def label_by_folder(names: Sequence[str]) -> Labelling | None:
    """One class for each folder below the last one that holds everything; None for a flat or mixed layout.

    >>> label_by_folder(("photos/cat/1.png", "photos/dog/2.png", "photos/cat/3.png"))
    Labelling(labels=(0, 1, 0), class_names=('cat', 'dog'))
    >>> label_by_folder(("photos/1.png", "photos/dog/2.png")) is None
    True
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    common = _common_length(folders)
    if any(len(folder) == common for folder in folders):
        return None
    classes = sorted({folder[common] for folder in folders}, key=natural)
    number = {name: index for index, name in enumerate(classes)}
    return Labelling(tuple(number[folder[common]] for folder in folders), tuple(classes))


def _common_length(folders: list[tuple[str, ...]]) -> int:
    """How many leading parts all paths share."""
    # Paths differ in depth: beyond the shortest one nothing is shared by all, so zip may end there.
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return sum(1 for _ in alike)
