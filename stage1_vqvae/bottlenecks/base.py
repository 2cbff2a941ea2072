"""What every bottleneck between encoder and decoder offers; the model knows no more of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Statistics(NamedTuple):
    """What a training step reports of its codes. The loop adds up `sums` and gathers `samples` over micro-batches."""

    sums: Float[Tensor, "codes columns"]
    samples: Float[Tensor, "samples dim"]


class BottleneckOutput(NamedTuple):
    """One pass through a bottleneck: what the decoder sees, the codes, and the loss terms that are its own."""

    quantised: Float[Tensor, "n dim h w"]
    codes: Int[Tensor, "n h w"]
    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    statistics: Statistics


class Reset(NamedTuple):
    """Rows of a parameter that were replaced: what an optimizer remembers of them is void."""

    parameter: nn.Parameter
    rows: Bool[Tensor, "codes"]


class Bottleneck(nn.Module, ABC):
    """Encoder outputs (n, dim, h, w) <-> codes (n, h, w)."""

    @abstractmethod
    def forward(self, outputs: Float[Tensor, "n dim h w"]) -> BottleneckOutput:
        """Quantise with a gradient to the encoder; changes no state."""

    @abstractmethod
    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The codes of encoder outputs."""

    @abstractmethod
    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The vectors that codes stand for."""

    @abstractmethod
    def initialise(self, batches: Sequence[Float[Tensor, "vectors dim"]], generator: torch.Generator) -> None:
        """Fit the bottleneck to the untrained encoder's outputs on a few batches, once, before the first step."""

    @abstractmethod
    def update(self, statistics: Statistics, progress: float, generator: torch.Generator) -> list[Reset]:
        """Once a step, after the optimizer, with the whole batch's statistics; `progress` is step / total steps."""
