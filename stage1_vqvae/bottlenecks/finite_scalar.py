"""Finite scalar quantization: no codebook; each channel is rounded to one of a few levels.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", sections 3.1 and A.1.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput, DiscreteBottleneck, at_least_float32, full_precision
from stage1_vqvae.config import VQVAEConfig

_MARGIN = 1e-3  # beyond the outermost level, so that a finite output reaches it through tanh


class FiniteScalarQuantizer(DiscreteBottleneck):
    """num_codes = product of the levels. A code is a number in mixed radix, and its vector the digits of that number.

    Computes in float32 whatever the precision around it.
    """

    levels: Tensor  # (dim, 1, 1) how many values each digit has
    basis: Tensor  # (dim, 1, 1) the value of one unit of each digit
    centre: Tensor  # (dim, 1, 1) the digit that decodes to 0, as a float

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config.num_codes, config.ema_decay)
        levels = config.fsq_levels
        self.inputs = self.outputs = len(levels)
        basis = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", _by_channel(levels), persistent=False)
        self.register_buffer("basis", _by_channel(basis), persistent=False)
        self.register_buffer("centre", (self.levels // 2).float(), persistent=False)

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        with full_precision(outputs.device):
            bounded = self._bounded(at_least_float32(outputs))
            digits = bounded.round()
            quantized = bounded + (digits - bounded).detach()  # straight through
            codes = self._codes(digits.detach())
            return BottleneckOutput(
                quantized=quantized / self.centre,
                codes=codes,
                loss=outputs.new_zeros((), dtype=torch.float32),
                statistics=self.counts(codes),
            )

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The number whose digits are the rounded outputs."""
        with full_precision(outputs.device):
            return self._codes(self._bounded(at_least_float32(outputs.detach())).round())

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The digits of each code, scaled to [-1, 1]; of an even number of levels the greatest is one step below 1."""
        digits = rearrange(codes, "n h w -> n 1 h w") // self.basis % self.levels
        return (digits - self.centre) / self.centre

    def _bounded(self, outputs: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """Outputs squashed by tanh so that rounding yields as many values as there are levels (section 3.1).

        0 is mapped to 0; but with 2 levels, where tanh would be flat at 0, to the middle between them.
        """
        reach = (self.levels.to(outputs.dtype) - 1) * (1 + _MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(outputs.dtype)
        shift = torch.where(self.levels > 2, (offset / reach).atanh(), 0.0).to(outputs.dtype)
        return (outputs + shift).tanh() * reach - offset

    def _codes(self, rounded: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        return ((rounded.long() + self.levels // 2) * self.basis).sum(1)


def _by_channel(values: Sequence[int]) -> Int[Tensor, "dim 1 1"]:
    return rearrange(torch.tensor(values), "dim -> dim 1 1")
