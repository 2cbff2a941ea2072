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


def interleaved(
    above: UInt8[np.ndarray, "n c h w"], below: UInt8[np.ndarray, "n c h w"], columns: int
) -> UInt8[np.ndarray, "m c h w"]:
    """Rows of images from `above`, each followed by the row of those that belong to them; short rows end in white."""
    missing = -len(above) % columns
    white = np.full((missing, *above.shape[1:]), 255, above.dtype)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *above.shape[1:]) for part in (above, below)]
    return np.stack(rows, axis=1).reshape(-1, *above.shape[1:])


def write_picture(path: Path, images: UInt8[np.ndarray, "n c h w"]) -> None:
    """A grid as PNG, under its name only once it is complete."""
    with atomic_file(path) as unfinished:
        pixels.grid(images, COLUMNS).save(unfinished, format="png")
