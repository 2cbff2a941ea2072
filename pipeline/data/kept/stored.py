"""Decoded images in the cache: their pixels, what one pass over these found, and the classes that they were given.

Whoever opens a set again reads none of its pixels. What an older version did not note, or other classes need, is found
in one pass more, and kept.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from pipeline.data.image_set import Decoded, Facts, ImageSet, Names, assembled
from pipeline.data.kept import cache, mapped
from pipeline.data.sources.labelling import Classes
from pipeline.storage import atomic_file, load_metadata, load_tensors, save_tensors

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)


def opened(folder: Path, window: tuple[int, int], classes: Classes) -> ImageSet | None:
    """The set in a folder of the cache, with these classes; None where there is none, it is being removed, it is
    damaged, or something is not noted that a pass over its pixels would find."""
    decoded = _decoded(folder)
    if decoded is None:
        return None
    try:
        noted, path = load_tensors(folder / cache.FACTS), folder / _labels_file(classes)
        facts = Facts(*(noted[name].numpy() for name in Facts._fields))
        labels, about = load_tensors(path).get("labels"), load_metadata(path)
        class_names, fingerprint = tuple(json.loads(about["class_names"])), about["fingerprint"]
    except _UNREADABLE:
        return None
    own = None if labels is None else labels.numpy()
    if any(len(values) != len(decoded.array) for values in (*facts, *([] if own is None else [own]))):
        return None
    return ImageSet(decoded.array, window, facts, own, class_names, fingerprint, decoded.skipped, decoded.names)


def completed(folder: Path, window: tuple[int, int], classes: Classes) -> ImageSet | None:
    """The set in a folder of the cache once more, where its pixels are whole: what is not noted is found and kept."""
    decoded = _decoded(folder)
    if decoded is None:
        return None
    found = assembled(decoded, window, classes)
    with contextlib.suppress(PermissionError):  # of a cache that others fill
        note(folder, found, classes)
    return found


def note(folder: Path, found: ImageSet, classes: Classes) -> None:
    """Write down what a pass over the pixels of a set has found."""
    names = found.names if isinstance(found.names, Names) else Names.of(found.names)
    noted = {**found.facts._asdict(), "names": names.text, "name_ends": names.ends}
    with atomic_file(folder / cache.FACTS) as unfinished:
        save_tensors(unfinished, {name: torch.from_numpy(np.array(values)) for name, values in noted.items()})
    labels = {} if found.labels is None else {"labels": torch.from_numpy(found.labels)}
    about = {"class_names": json.dumps(found.class_names), "fingerprint": found.fingerprint}
    with atomic_file(folder / _labels_file(classes)) as unfinished:
        save_tensors(unfinished, labels, about)


def _labels_file(classes: Classes) -> str:
    return f"labels-{classes.key}.safetensors"


def _decoded(folder: Path) -> Decoded | None:
    """The pixels of a set, their names, and what was skipped; None where they are damaged or not there."""
    try:
        about = json.loads((folder / cache.ABOUT).read_text())
        array, skipped = mapped.open_held(folder / cache.IMAGES), tuple(about["skipped"])
        names = _noted_names(folder) if (listed := about.get("names")) is None else tuple(listed)
    except _UNREADABLE:
        return None
    with contextlib.suppress(PermissionError):  # of a cache that others fill
        os.utime(folder)  # it was used now
    return Decoded(array, names, skipped) if len(names) == len(array) else None


def _noted_names(folder: Path) -> Names:
    """The names of a set; versions that noted no facts listed them in images.json."""
    noted = load_tensors(folder / cache.FACTS)
    return Names(noted["names"].numpy(), noted["name_ends"].numpy())
