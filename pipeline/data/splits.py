"""The three parts of the data, and what is known of a part as a whole."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet
from pipeline.errors import CheckpointError, DataError
from pipeline.randomness import Purpose, stream
from pipeline.storage import atomic_file, load_tensors, save_tensors

_ADDED = 2**18  # images whose sums are added up in 64 bits


class Split(NamedTuple):
    """Indices of the images that are trained on, of those that choose the best weights, and of those that no training
    looks at, in rising order."""

    train: Int[np.ndarray, "train"]
    validation: Int[np.ndarray, "validation"]
    test: Int[np.ndarray, "test"]


def split(n: int, config: DataConfig, seed: int) -> Split:
    """Divide n images at random: at least one to train on and one for validation. Raises DataError for fewer than two.

    The validation part is the same whatever the size of the test part.
    """
    if n < 2:
        raise DataError(f"training takes 2 images at least, one of them for validation; got {n}")
    order = stream(seed, Purpose.SPLIT).permutation(n)
    first = min(n - 1, max(1, round(n * config.validation)))
    second = min(n - 1, first + round(n * config.test_fraction))
    return Split(np.sort(order[second:]), np.sort(order[:first]), np.sort(order[first:second]))


def save_split(path: Path, parts: Split) -> None:
    """Write the indices of each part, whole or not at all: a finished model may be there that they belong to."""
    with atomic_file(path) as unfinished:
        save_tensors(unfinished, {name: torch.from_numpy(part) for name, part in parts._asdict().items()})


def load_split(path: Path) -> Split:
    """Read the indices of each part. Raises CheckpointError unless every image is in one of them, once."""
    tensors = load_tensors(path)
    if tensors.keys() != set(Split._fields):
        raise CheckpointError(f"{path} holds {sorted(tensors)}, and not the parts {', '.join(Split._fields)}")
    parts = Split(*(tensors[name].numpy() for name in Split._fields))
    if any(part.dtype != np.int64 or part.ndim != 1 for part in parts):
        found = ", ".join(f"{part.dtype} {part.shape}" for part in parts)
        raise CheckpointError(f"{path} is damaged: parts are lists of whole numbers (int64), and these are {found}")
    if (np.sort(np.concatenate(parts)) != np.arange(sum(map(len, parts)))).any() or not (
        len(parts[0]) and len(parts[1])
    ):
        raise CheckpointError(f"{path} is damaged: its parts do not hold each image once, or one of them is empty")
    return parts


def pixel_variance(image_set: ImageSet, indices: Int[np.ndarray, "m"]) -> float:
    """The global variance of the pixels of these images on [0, 1], correctly rounded. Raises DataError when it is zero.

    It is of what is known of each image: no pixel is read.
    """
    n = len(indices) * math.prod(image_set.shape)
    parts = np.array_split(indices, -(-len(indices) // _ADDED))
    total, squares = (
        sum(int(of[part].sum()) for part in parts) for of in (image_set.facts.sums, image_set.facts.squares)
    )
    variance = (n * squares - total**2) / (255 * n) ** 2  # a quotient of integers without a limit
    if variance == 0:
        raise DataError("all pixels of all training images are equal: there is nothing to learn")
    return variance
