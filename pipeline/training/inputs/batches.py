"""Batches of images for stage 1 and of codes for stage 2, in the form that the training loop asks for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.data.codes.maps import CodeMaps
from pipeline.data.codes.shards import StoredCodes
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import Split
from pipeline.randomness import BatchIndices, crops, flips, views
from stage2_prior import CodeBatch

MOST_EVALUATED = 256  # images or maps at a time
_VALUES = 2**24  # of the largest tensor of an evaluation: fewer at a time where one image has many
_WIDTH = 32  # numbers a pixel, of an encoder's first feature maps


@dataclass(frozen=True)
class ImageBatches:
    """Images of a split, moved at random where they have a margin, mirrored at random where asked for."""

    images: ImageSet
    parts: Split
    flip: bool
    seed: int

    @property
    def population(self) -> int:
        """Images trained on."""
        return len(self.parts.train)

    def training_batch(self, batch: BatchIndices, device: torch.device) -> UInt8[Tensor, "n c h w"]:
        """The images of these indices."""
        positions = crops(self.seed, batch, self.population, self.images.positions)
        pixels = self.images.windows(self.parts.train[batch.items], positions)
        if self.flip:
            mirrored = flips(self.seed, batch, self.population)
            pixels = np.where(mirrored[:, None, None, None], pixels[..., ::-1], pixels)
        return _sent(torch.from_numpy(pixels), device)

    def validation_batches(
        self, rank: int, world_size: int, device: torch.device
    ) -> Iterator[UInt8[Tensor, "n c h w"]]:
        """This process's part of the validation images; at least one batch, if an empty one."""
        _, height, width = self.images.shape
        for chosen in _divided(self.parts.validation, rank, world_size, height * width * _WIDTH):
            yield _sent(torch.from_numpy(self.images.images[chosen]), device)


@dataclass(frozen=True)
class CodeBatches:
    """Code maps of one level, with those of the levels before it; only those of a batch are read from the disk."""

    train: CodeMaps | StoredCodes
    validation: CodeMaps | StoredCodes
    level: int
    num_codes: int
    seed: int

    @property
    def population(self) -> int:
        """Maps trained on."""
        return len(self.train)

    def training_batch(self, batch: BatchIndices, device: torch.device) -> CodeBatch:
        """The maps of these indices, each of one of the image's encodings at random."""
        which = views(self.seed, batch, self.population, self.train.encodings)
        return _to_device(self.train.rows(batch.items, self.level + 1, which), device)

    def validation_batches(self, rank: int, world_size: int, device: torch.device) -> Iterator[CodeBatch]:
        """This process's part of the validation maps; at least one batch, if an empty one."""
        logits = math.prod(self.validation.grids[self.level]) * self.num_codes
        for chosen in _divided(np.arange(len(self.validation)), rank, world_size, logits):
            yield _to_device(self.validation.rows(chosen, self.level + 1), device)


def _to_device(maps: CodeMaps, device: torch.device) -> CodeBatch:
    """Small integers are sent, and become int64 there."""
    *coarser, codes = (_sent(level, device).long() for level in maps.levels)
    return CodeBatch(codes, None if maps.labels is None else _sent(maps.labels, device), coarser)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On its way to the device: of pinned memory nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _divided(indices: Int[np.ndarray, "n"], rank: int, world_size: int, values: int) -> list[Int[np.ndarray, "_"]]:
    own, at_a_time = np.array_split(indices, world_size)[rank], max(1, min(MOST_EVALUATED, _VALUES // values))
    return np.array_split(own, max(1, -(-len(own) // at_a_time)))
