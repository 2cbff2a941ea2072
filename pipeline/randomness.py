"""Randomness as a function of (seed, purpose, index), never of what ran before.

numpy's SeedSequence does the hashing. Sampling noise has its own hash, in stage2_prior/noise.py.
"""

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

_EPOCHS = 2  # of which the order is kept: a batch may end one and begin the next


class Purpose(IntEnum):
    """What random numbers are for. The values are part of what a seed means: never renumber them."""

    SPLIT = 0
    ORDER = 1
    FLIP = 2
    TRAINING_NOISE = 3
    CODEBOOK = 4
    WEIGHTS = 5
    LABELS = 6
    LATENTS = 7
    VIEW = 8
    SHIFT = 9
    CANDIDATES = 10
    SHOWN = 11
    JUDGE = 12
    CROP = 13
    FEATURES = 14


def number(seed: int, purpose: Purpose, *index: int) -> int:
    """A 63-bit seed for a generator of torch."""
    return int(np.random.SeedSequence([seed, purpose, *index]).generate_state(1, np.uint64)[0]) >> 1


def stream(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """A numpy generator."""
    return np.random.default_rng([seed, purpose, *index])


def generator(seed: int, purpose: Purpose, *index: int, device: torch.device) -> torch.Generator:
    """A torch generator on a device."""
    return torch.Generator(device).manual_seed(number(seed, purpose, *index))


class BatchIndices(NamedTuple):
    """Which items make up a batch, and in which epoch each of them is met."""

    items: Int[np.ndarray, "batch"]
    epochs: Int[np.ndarray, "batch"]


def batch_indices(seed: int, step: int, batch_size: int, population: int) -> BatchIndices:
    """The batch of a step. Epochs follow each other without a seam, each in an order of its own."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, population)
    items = np.empty_like(offsets)  # int64, whatever an order is kept in
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        items[chosen] = _order(seed, int(epoch), population)[offsets[chosen]]
    return BatchIndices(items, epochs)


@lru_cache(maxsize=_EPOCHS)
def _order(seed: int, epoch: int, population: int) -> Int[np.ndarray, "population"]:
    order = stream(seed, Purpose.ORDER, epoch).permutation(population)
    return order.astype(np.min_scalar_type(population))


def flips(seed: int, batch: BatchIndices, population: int) -> Bool[np.ndarray, "batch"]:
    """Whether each item of a batch is mirrored: a coin of (seed, epoch, item)."""
    return _of_items(Purpose.FLIP, seed, batch, population, 2) == 0


def views(seed: int, batch: BatchIndices, population: int, count: int) -> Int[np.ndarray, "batch"]:
    """Which of `count` encodings of each item of a batch is learned from: a die of (seed, epoch, item)."""
    return _of_items(Purpose.VIEW, seed, batch, population, count)


def crops(seed: int, batch: BatchIndices, population: int, count: int) -> Int[np.ndarray, "batch"]:
    """At which of `count` positions each item of a batch is cut out: a die of (seed, epoch, item)."""
    return _of_items(Purpose.CROP, seed, batch, population, count)


def _of_items(
    purpose: Purpose, seed: int, batch: BatchIndices, population: int, count: int
) -> Int[np.ndarray, "batch"]:
    result = np.empty(len(batch.items), np.int64)
    for epoch in np.unique(batch.epochs):
        chosen = batch.epochs == epoch
        result[chosen] = _dice(purpose, seed, int(epoch), population, count)[batch.items[chosen]]
    return result


@lru_cache(maxsize=_EPOCHS)
def _dice(purpose: Purpose, seed: int, epoch: int, population: int, count: int) -> Int[np.ndarray, "population"]:
    """A number below `count` for each item, in as few bytes as it takes: a population may be many millions."""
    return (stream(seed, purpose, epoch).random(population) * count).astype(np.min_scalar_type(count))


@lru_cache(maxsize=16)  # shards ask for all of an image's encodings in turn
def shifts(moved: int, count: int, population: int) -> Int[np.ndarray, "population 2"]:
    """How far each item is moved down and to the right, below `count`, in the encoding `moved`: whatever the seed."""
    offsets = stream(0, Purpose.SHIFT, moved).integers(0, count, (population, 2))
    return offsets.astype(np.min_scalar_type(count))
