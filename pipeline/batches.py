"""Batches of images for stage 1 and of codes for stage 2, in the form that the training loop asks for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipeline.codes import CodeMaps
from pipeline.data import ImageSet, Split
from pipeline.randomness import Places, flips, views
from stage2_prior import CodeBatch

MOST_HELD_OUT = 256  # images or maps evaluated at a time
_VALUES = 2**24  # of the largest tensor of an evaluation: fewer at a time where one image has many
_WIDTH = 32  # numbers a pixel, of an encoder's first feature maps


@dataclass(frozen=True)
class ImageBatches:
    """Images of a split, mirrored at random where asked for."""

    images: ImageSet
    parts: Split
    flip: bool
    seed: int

    @property
    def population(self) -> int:
        """Images trained on."""
        return len(self.parts.train)

    def training_batch(self, places: Places, device: torch.device) -> UInt8[Tensor, "n c h w"]:
        """The images at these places."""
        pixels = self.images.images[self.parts.train[places.items]]
        if self.flip:
            mirrored = flips(self.seed, places, self.population)
            pixels = np.where(mirrored[:, None, None, None], pixels[..., ::-1], pixels)
        return torch.from_numpy(pixels).to(device)

    def held_out_batches(self, share: int, shares: int, device: torch.device) -> Iterator[UInt8[Tensor, "n c h w"]]:
        """A share of the held-out images; at least one batch, if an empty one."""
        _, height, width = self.images.shape
        for chosen in _shared_out(self.parts.held_out, share, shares, height * width * _WIDTH):
            yield torch.from_numpy(self.images.images[chosen]).to(device)


@dataclass(frozen=True)
class CodeBatches:
    """Code maps of one level, with those of the levels before it."""

    train: CodeMaps
    held_out: CodeMaps
    level: int
    num_codes: int
    seed: int

    @property
    def population(self) -> int:
        """Maps trained on."""
        return len(self.train)

    def training_batch(self, places: Places, device: torch.device) -> CodeBatch:
        """The maps at these places, each of one of the image's encodings at random."""
        items, encodings = torch.from_numpy(places.items), [self.train.levels, *self.train.views]
        which = torch.from_numpy(views(self.seed, places, self.population, len(encodings)))
        levels = [encodings[0][level][items] for level in range(self.level + 1)]
        for number, encoding in enumerate(encodings[1:], 1):
            chosen = which == number
            for level, codes in enumerate(levels):
                codes[chosen] = encoding[level][items[chosen]]
        return _to_device(levels, self.train.labels, items, device)

    def held_out_batches(self, share: int, shares: int, device: torch.device) -> Iterator[CodeBatch]:
        """A share of the held-out maps; at least one batch, if an empty one."""
        logits = self.held_out.levels[self.level][0].numel() * self.num_codes
        for chosen in _shared_out(np.arange(len(self.held_out)), share, shares, logits):
            items = torch.from_numpy(chosen)
            levels = [level[items] for level in self.held_out.levels[: self.level + 1]]
            yield _to_device(levels, self.held_out.labels, items, device)


def _to_device(levels: Sequence[Tensor], labels: Tensor | None, items: Tensor, device: torch.device) -> CodeBatch:
    *coarser, codes = (level.long().to(device) for level in levels)
    return CodeBatch(codes, None if labels is None else labels[items].to(device), coarser)


def _shared_out(indices: np.ndarray, share: int, shares: int, values: int) -> list[np.ndarray]:
    mine, at_a_time = np.array_split(indices, shares)[share], max(1, min(MOST_HELD_OUT, _VALUES // values))
    return np.array_split(mine, max(1, -(-len(mine) // at_a_time)))
