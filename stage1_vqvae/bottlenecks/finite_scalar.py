"""Finite scalar quantisation: no codebook; each channel is rounded to one of a few levels.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", sections 3.1 and A.1.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput, DiscreteBottleneck, at_least_float32
from stage1_vqvae.config import VQVAEConfig

_MARGIN = 1e-3  # beyond the outermost level, so that tanh needs not be infinite to reach it


class FiniteScalarQuantizer(DiscreteBottleneck):
    """num_codes = product of the levels; a code and its vector are one number in mixed radix and its digits.

    Computes in float32 whatever the precision around it.
    """

    levels: Tensor  # (dim, 1, 1)
    places: Tensor  # (dim, 1, 1) what a digit is worth
    centre: Tensor  # (dim, 1, 1) the digit that stands for 0, as a float

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config.num_codes, config.ema_decay)
        levels = config.fsq_levels
        self.inputs = self.outputs = len(levels)
        places = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", _by_channel(levels), persistent=False)
        self.register_buffer("places", _by_channel(places), persistent=False)
        self.register_buffer("centre", (self.levels // 2).float(), persistent=False)

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        with torch.autocast(outputs.device.type, enabled=False):
            bounded = self._bounded(at_least_float32(outputs))
            digits = bounded.round()
            quantised = bounded + (digits - bounded).detach()  # straight through
            codes = self._codes(digits.detach())
            return BottleneckOutput(
                quantised=quantised / self.centre,
                codes=codes,
                loss=outputs.new_zeros((), dtype=torch.float32),
                statistics=self.counts(codes),
            )

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The number whose digits are the rounded outputs."""
        with torch.autocast(outputs.device.type, enabled=False):
            return self._codes(self._bounded(at_least_float32(outputs.detach())).round())

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The digits of each code as levels from -1 to 1 (to 1 less a step, where their number is even)."""
        digits = rearrange(codes, "n h w -> n 1 h w") // self.places % self.levels
        return (digits - self.centre) / self.centre

    def _bounded(self, outputs: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """Outputs squashed so that rounding yields as many values as there are levels.

        0 is squashed to 0, but for 2 levels: there the squashing would be flat, and 0 lies between them.
        """
        reach = (self.levels.to(outputs.dtype) - 1) * (1 + _MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(outputs.dtype)
        shift = torch.where(self.levels > 2, (offset / reach).atanh(), 0.0).to(outputs.dtype)
        return (outputs + shift).tanh() * reach - offset

    def _codes(self, rounded: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        return ((rounded.long() + self.levels // 2) * self.places).sum(1)


def _by_channel(values: Sequence[int]) -> Int[Tensor, "dim 1 1"]:
    return rearrange(torch.tensor(values), "dim -> dim 1 1")
