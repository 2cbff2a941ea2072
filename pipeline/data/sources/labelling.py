"""The classes of images: by the folders that they lie in, or by what is written down for each."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from pipeline.data.sources.base import Labelling, natural


@dataclass(frozen=True)
class Classes:
    """How images come by their classes: `of` their names, where they have any; and a `key` that says which classes."""

    key: str
    of: Callable[[Sequence[str]], Labelling | None]


def numbered(classes: Sequence[str]) -> Labelling:
    """A class for each name of one, in their natural order.

    >>> numbered(["class 10", "class 9", "class 10"])
    Labelling(labels=(1, 0, 1), class_names=('class 9', 'class 10'))
    """
    class_names = tuple(sorted(set(classes), key=natural))
    number = {name: index for index, name in enumerate(class_names)}
    return Labelling(tuple(number[name] for name in classes), class_names)


def own_classes(names: Sequence[str], labelling: Labelling) -> Classes:
    """Classes that are written down for all images of a source, of which some may be left out."""

    def of(kept: Sequence[str]) -> Labelling:
        if len(kept) == len(names):
            return labelling
        wanted = set(kept)
        labels = (label for name, label in zip(names, labelling.labels, strict=True) if name in wanted)
        return Labelling(tuple(labels), labelling.class_names)

    digest = hashlib.sha256(json.dumps(labelling.class_names).encode())
    digest.update(np.array(labelling.labels, np.int64).tobytes())
    return Classes(digest.hexdigest()[:32], of)


def label_by_folder(names: Sequence[str]) -> Labelling | None:
    """One class for each folder below the last one that holds everything; None for a flat or mixed layout.

    >>> label_by_folder(("photos/cat/1.png", "photos/dog/2.png", "photos/cat/3.png"))
    Labelling(labels=(0, 1, 0), class_names=('cat', 'dog'))
    >>> label_by_folder(("photos/1.png", "photos/dog/2.png")) is None
    True
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    shortest = min(map(len, folders), default=0)
    differ = (depth for depth in range(shortest) if len({folder[depth] for folder in folders}) > 1)
    common = next(differ, shortest)
    if any(len(folder) == common for folder in folders):
        return None
    return numbered([folder[common] for folder in folders])


BY_FOLDER = Classes("folders", label_by_folder)
NO_CLASSES = Classes("none", lambda names: None)
