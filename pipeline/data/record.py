"""What a run notes down of its images: which could not be read, and hashes by which it says later what has changed."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from pipeline.data.image_set import ImageSet, hashed
from pipeline.storage import atomic_file, load_tensors, save_tensors

_NAMED = 3  # files named of each kind


class Hashes(NamedTuple):
    """Eight bytes for the pixels of each image, and eight for the name of its file where there are files: of a million
    images 16 MB, where the names themselves may take a hundred."""

    pixels: Int[np.ndarray, "n"]
    names: Int[np.ndarray, "m"]


def hashes(image_set: ImageSet) -> Hashes:
    """The hashes of these images."""
    return Hashes(image_set.facts.hashes, hashed(name.encode() for name in image_set.names))


def save_hashes(path: Path, image_set: ImageSet) -> None:
    """Write the hashes of these images, whole or not at all."""
    values = hashes(image_set)._asdict()
    with atomic_file(path) as unfinished:
        save_tensors(unfinished, {name: torch.from_numpy(own.copy()) for name, own in values.items()})


def load_hashes(path: Path) -> Hashes | None:
    """Read hashes; None where an older version, which wrote none, began the run. Raises CheckpointError."""
    if not path.exists():
        return None
    tensors = load_tensors(path)
    return Hashes(*(tensors[name].numpy() for name in Hashes._fields))


def what_changed(then: Hashes, image_set: ImageSet) -> str:
    """In words, which images are new, missing or changed since `then`; empty when it is none, but their classes."""
    now = hashes(image_set)
    if not (len(then.names) and len(now.names)):  # an array: images go by their numbers
        n = min(len(then.pixels), len(now.pixels))
        return _listed("changed", [f"image {index}" for index in np.flatnonzero(then.pixels[:n] != now.pixels[:n])])
    pixels_then = dict(zip(then.names.tolist(), then.pixels.tolist(), strict=True))
    new, changed = [], []
    for name, file, pixels in zip(now.names.tolist(), image_set.names, now.pixels.tolist(), strict=True):
        if name not in pixels_then:
            new.append(file)
        elif pixels_then[name] != pixels:
            changed.append(file)
    missing = len(pixels_then) + len(new) - len(now.names)
    parts = [_listed("new", new), f"{missing:,} missing" if missing else "", _listed("changed", changed)]
    return "; ".join(part for part in parts if part)


def _listed(kind: str, files: list[str]) -> str:
    if not files:
        return ""
    more = ", ..." if len(files) > _NAMED else ""
    return f"{len(files):,} {kind} ({', '.join(files[:_NAMED])}{more})"


def write_skipped(path: Path, image_set: ImageSet) -> None:
    """A line for each file that could not be read, its name and why; no file where all could be."""
    if not image_set.skipped:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as unfinished:
        unfinished.write_text("".join(f"{line.replace(chr(10), ' ')}\n" for line in image_set.skipped), "utf-8")
