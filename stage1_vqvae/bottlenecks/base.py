"""The interface of every bottleneck between encoder and decoder; the model uses nothing else of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from stage1_vqvae.bottlenecks.codebook import count_codes, perplexity

AVERAGED = 200  # encoder outputs that a code vector is the mean of, about, unless a decay is given
SLOWEST, FASTEST = 0.01, 0.1  # fraction of a moving average that a step replaces
WARM_UP = 0.1  # fraction of the training over which the weight of a KL term rises from 0


class Statistics(NamedTuple):
    """What a training step reports for `update`: the loop adds up `sums` and joins `samples` over the whole batch.

    `sums` have one row per code, with its count in the last column; `samples` are encoder outputs.
    """

    sums: Float[Tensor, "codes columns"]
    samples: Float[Tensor, "samples dim"]


class BottleneckOutput(NamedTuple):
    """One pass through a bottleneck: the decoder's input, the codes, and the bottleneck's own term of the loss.

    `metrics` are detached scalars; `statistics` are for `update`, None from a bottleneck that has nothing to update.
    """

    quantized: Float[Tensor, "n dim h w"]
    codes: Shaped[Tensor, "n ..."]
    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    statistics: Statistics | None = None


class Reset(NamedTuple):
    """Rows of a parameter that were replaced: the optimizer's moments of them are to be reset."""

    parameter: nn.Parameter
    rows: Bool[Tensor, "codes"]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the precision of the operands, whatever autocast is around. (The meta device has no autocast.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(outputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Bottlenecks compute in float32 whatever the precision around them, or in float64 in a model of that."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def warm_up(progress: float) -> float:
    """The factor on the weight of a KL term, rising linearly from 0 to 1: with 1 from the start, posteriors collapse.

    `progress` is step / total steps.
    """
    return min(1.0, progress / WARM_UP)


class Bottleneck(nn.Module, ABC):
    """Encoder outputs (n, inputs, h, w) -> codes -> the decoder's input (n, outputs, h, w).

    Codes are integers (n, h, w) of a discrete bottleneck, floats (n, outputs, h, w) of a continuous one.
    """

    inputs: int  # channels
    outputs: int  # channels
    sum_names: tuple[str, ...]  # of the sums that `measure` returns and `summarise` takes

    @abstractmethod
    def forward(self, outputs: Float[Tensor, "n inputs h w"], progress: float) -> BottleneckOutput:
        """One pass with a gradient to the encoder; changes no state. `progress` is step / total steps."""

    @abstractmethod
    def encode(self, outputs: Float[Tensor, "n inputs h w"]) -> Shaped[Tensor, "n ..."]:
        """The codes of encoder outputs."""

    @abstractmethod
    def decode(self, codes: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n dim h w"]:
        """The decoder's input for codes."""

    def sample(
        self, outputs: Float[Tensor, "n inputs h w"], noise: Float[Tensor, "n c rows columns"]
    ) -> Float[Tensor, "n dim h w"]:
        """The decoder's input for a sample of the posterior; for most bottlenecks the posterior is a single point.

        `noise` is from N(0, 1).
        """
        return self.decode(self.encode(outputs))

    @abstractmethod
    def measure(self, outputs: Float[Tensor, "n inputs h w"], codes: Shaped[Tensor, "n ..."]) -> dict[str, Tensor]:
        """Sums over encoder outputs and their codes, in float64, that add up over batches, for `summarise`."""

    @abstractmethod
    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """How codes are used and distributed, by name, from sums over a whole split."""

    def initialise(self, batches: Sequence[Float[Tensor, "vectors inputs"]], generator: torch.Generator) -> None:
        """Fit the bottleneck to the untrained encoder's outputs on a few batches, once, before the first step."""
        return

    def update(self, statistics: Statistics, progress: float, generator: torch.Generator) -> list[Reset]:
        """Once per step, after the optimizer, with the statistics of the whole batch. Returns replaced rows."""
        return []


class DiscreteBottleneck(Bottleneck):
    """A bottleneck whose codes are integers from 0 to num_codes - 1."""

    sum_names: tuple[str, ...] = ("histogram",)
    mean_counts: Tensor  # (codes,) moving average of how often a step uses each code

    def __init__(self, num_codes: int, decay: float | None) -> None:
        super().__init__()
        self.num_codes, self.decay = num_codes, decay
        self.register_buffer("mean_counts", torch.ones(num_codes))

    def counts(self, codes: Int[Tensor, "..."]) -> Statistics:
        """Statistics without samples: how often each code was used."""
        sums = count_codes(codes, self.num_codes).float()
        return Statistics(rearrange(sums, "codes -> codes 1"), sums.new_zeros(0, self.outputs))

    @torch.no_grad()
    def update(self, statistics: Statistics, progress: float, generator: torch.Generator) -> list[Reset]:
        """Move the average of how often each code is used."""
        counts = statistics.sums[:, -1]
        self.mean_counts.lerp_(counts, self.replacement_rate(counts))
        return []

    def replacement_rate(self, counts: Float[Tensor, "codes"]) -> Float[Tensor, ""]:
        """1 - decay of the moving averages: the fraction of them that a step with these counts replaces."""
        if self.decay is not None:
            return counts.new_tensor(1 - self.decay)
        return (counts.sum() / (AVERAGED * self.num_codes)).clamp(SLOWEST, FASTEST)

    @torch.no_grad()
    def mean_vector(self) -> Float[Tensor, "dim"]:
        """The mean of all code vectors, weighted by how often they are used: decoded in place of a missing code."""
        codes = torch.arange(self.num_codes, device=self.mean_counts.device)
        vectors = rearrange(self.decode(rearrange(codes, "codes -> codes 1 1")), "codes dim 1 1 -> codes dim")
        return (self.mean_counts / self.mean_counts.sum()).to(vectors) @ vectors

    def measure(self, outputs: Float[Tensor, "n inputs h w"], codes: Int[Tensor, "n h w"]) -> dict[str, Tensor]:
        """How often each code is used."""
        return {"histogram": count_codes(codes, self.num_codes)}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The fraction of codes in use, their perplexity and entropy (nats), and the number of dead codes."""
        histogram = sums["histogram"]
        return {
            "codebook_usage": float((histogram > 0).double().mean()),
            "perplexity": float(perplexity(histogram)),
            "entropy": float(perplexity(histogram).log()),
            "dead_codes": float((histogram == 0).sum()),
        }


ACTIVE = 0.01  # variance over images of a unit's mean above which it is active (Burda et al. 2015, section 5.2)


class ContinuousBottleneck(Bottleneck):
    """A bottleneck whose codes are floats. A unit is one of the outputs * h * w numbers of an image."""

    sum_names: tuple[str, ...] = ("sum", "square", "images")

    def measure(self, outputs: Float[Tensor, "n inputs h w"], codes: Float[Tensor, "n dim h w"]) -> dict[str, Tensor]:
        """Sums over images of each unit's value and its square."""
        units = codes.double()
        return {"sum": units.sum(0), "square": units.square().sum(0), "images": units.new_tensor(units.shape[0])}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The fraction of active units, and the mean variance of a unit over images."""
        mean = sums["sum"] / sums["images"]
        variance = sums["square"] / sums["images"] - mean.square()
        return {"active_units": float((variance > ACTIVE).double().mean()), "unit_variance": float(variance.mean())}
