"""Batches of images for stage 1 and of codes for stage 2, in the form that the training loop asks for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.data.code_maps import CodeMaps
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
    """Code maps of one level, with those of the levels before it."""

    train: CodeMaps
    validation: CodeMaps
    level: int
    num_codes: int
    seed: int

    @property
    def population(self) -> int:
        """Maps trained on."""
        return len(self.train)

    def training_batch(self, batch: BatchIndices, device: torch.device) -> CodeBatch:
        """The maps of these indices, each of one of the image's encodings at random."""
        items, encodings = torch.from_numpy(batch.items), [self.train.levels, *self.train.views]
        which = torch.from_numpy(views(self.seed, batch, self.population, len(encodings)))
        levels = [encodings[0][level][items] for level in range(self.level + 1)]
        for number, encoding in enumerate(encodings[1:], 1):
            chosen = which == number
            for level, codes in enumerate(levels):
                codes[chosen] = encoding[level][items[chosen]]
        return _to_device(levels, self.train.labels, items, device)

    def validation_batches(self, rank: int, world_size: int, device: torch.device) -> Iterator[CodeBatch]:
        """This process's part of the validation maps; at least one batch, if an empty one."""
        logits = self.validation.levels[self.level][0].numel() * self.num_codes
        for chosen in _divided(np.arange(len(self.validation)), rank, world_size, logits):
            items = torch.from_numpy(chosen)
            levels = [level[items] for level in self.validation.levels[: self.level + 1]]
            yield _to_device(levels, self.validation.labels, items, device)


def _to_device(levels: Sequence[Tensor], labels: Tensor | None, items: Tensor, device: torch.device) -> CodeBatch:
    *coarser, codes = (_sent(level, device).long() for level in levels)
    return CodeBatch(codes, None if labels is None else _sent(labels[items], device), coarser)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On its way to the device: of pinned memory nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _divided(indices: Int[np.ndarray, "n"], rank: int, world_size: int, values: int) -> list[Int[np.ndarray, "_"]]:
    own, at_a_time = np.array_split(indices, world_size)[rank], max(1, min(MOST_EVALUATED, _VALUES // values))
    return np.array_split(own, max(1, -(-len(own) // at_a_time)))
