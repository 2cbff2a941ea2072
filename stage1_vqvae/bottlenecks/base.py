"""What every bottleneck between encoder and decoder offers; the model knows no more of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Statistics(NamedTuple):
    """What a training step reports of its codes. The loop adds up `sums` and gathers `samples` over micro-batches."""

    sums: Float[Tensor, "codes columns"]
    samples: Float[Tensor, "samples dim"]


class BottleneckOutput(NamedTuple):
    """One pass through a bottleneck: what the decoder sees, the codes, and the loss terms that are its own.

    `metrics` are detached scalars; `statistics` are what `update` wants to be told, if it wants anything.
    """

    quantised: Float[Tensor, "n dim h w"]
    codes: Int[Tensor, "n h w"]
    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    statistics: Statistics | None = None


class Reset(NamedTuple):
    """Rows of a parameter that were replaced: what an optimizer remembers of them is void."""

    parameter: nn.Parameter
    rows: Bool[Tensor, "codes"]


class Bottleneck(nn.Module, ABC):
    """Encoder outputs (n, inputs, h, w) -> codes (n, h, w) -> what the decoder sees (n, outputs, h, w)."""

    inputs: int
    outputs: int

    @abstractmethod
    def forward(self, outputs: Float[Tensor, "n inputs h w"], progress: float) -> BottleneckOutput:
        """Quantise with a gradient to the encoder; changes no state. `progress` is step / total steps."""

    @abstractmethod
    def encode(self, outputs: Float[Tensor, "n inputs h w"]) -> Int[Tensor, "n h w"]:
        """The codes of encoder outputs."""

    @abstractmethod
    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The vectors that codes stand for."""

    def initialise(self, batches: Sequence[Float[Tensor, "vectors inputs"]], generator: torch.Generator) -> None:
        """Fit the bottleneck to the untrained encoder's outputs on a few batches, once, before the first step."""
        return

    def update(self, statistics: Statistics | None, progress: float, generator: torch.Generator) -> list[Reset]:
        """Once a step, after the optimizer, with the whole batch's statistics."""
        return []
