"""Several images in one picture: rows of them, originals above what was made of them."""

from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from pipeline.data import pixels
from pipeline.storage import atomic_file

COLUMNS = 8


def evenly_spread(population: int, most: int) -> Int[np.ndarray, "m"]:
    """Indices evenly over a population: sorted folders have their classes one after another."""
    return np.linspace(0, population - 1, min(population, most)).round().astype(np.int64)


def interleaved(*parts: UInt8[np.ndarray, "n c h w"], columns: int) -> UInt8[np.ndarray, "m c h w"]:
    """Rows of images from the first part, each followed by the rows of those that belong to them; short rows end in
    white."""
    first = parts[0]
    white = np.full((-len(first) % columns, *first.shape[1:]), 255, first.dtype)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *first.shape[1:]) for part in parts]
    return np.stack(rows, axis=1).reshape(-1, *first.shape[1:])


def write_picture(path: Path, images: UInt8[np.ndarray, "n c h w"]) -> None:
    """A grid as PNG, under its name only once it is complete."""
    with atomic_file(path) as unfinished:
        pixels.grid(images, COLUMNS).save(unfinished, format="png")
