"""Likelihoods of pixels around their reconstruction: losses in place of the squared error, which also give bits/dim.

Salimans et al. 2017, "PixelCNN++", section 2.1 for the discretised logistic; Rybkin et al. 2021, "Simple and Effective
VAE Training with Calibrated Decoders", section 3 for a learned scale that all pixels share.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.config import VQVAEConfig

BIN = 1 / 255  # the distance of two grey levels, for images on [-1/2, 1/2]
_LEAST = math.log(0.1 * BIN)
_SPEED = 10.0  # the log scale moves this many times faster than a weight, as it starts far off: at the data's own


class Likelihood(nn.Module, ABC):
    """A distribution of each pixel value around its reconstruction, with one learned scale per channel."""

    def __init__(self, config: VQVAEConfig, data_variance: float) -> None:
        super().__init__()
        start = 0.5 * math.log(max(data_variance, BIN**2)) / _SPEED
        self.slow_log_scale = nn.Parameter(torch.full((config.channels, 1, 1), start))

    @property
    def log_scale(self) -> Float[Tensor, "c 1 1"]:
        """Log of the scale, for images on [-1/2, 1/2]. Softplus keeps the scale above a tenth of a grey level."""
        return _LEAST + F.softplus(_SPEED * self.slow_log_scale - _LEAST)

    @abstractmethod
    def forward(self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """The training loss: nats per pixel value, for images on [-1/2, 1/2]."""

    @abstractmethod
    def nats(
        self, reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """-ln P of each pixel, in nats, P normalised over the 256 values: 0 and 255 also have the tail beyond them."""


class GaussianLikelihood(Likelihood):
    """A normal distribution, trained as a density and evaluated as the probability of a value's bin."""

    def forward(self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """-ln of the density of values on 0..255, in nats per value."""
        log_scale = self.log_scale.float()
        standardised = (target - reconstruction) * (-log_scale).exp()
        return (0.5 * standardised.square() + log_scale).mean() + 0.5 * math.log(2 * math.pi) - math.log(BIN)

    def nats(
        self, reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """-ln(Phi(above) - Phi(below))."""
        above, below = _edges(reconstruction, images, self.log_scale)
        # In the upper tail both are near 1 and their difference loses digits; by symmetry take it in the lower tail.
        flip = below > 0
        high, low = torch.where(flip, -below, above), torch.where(flip, -above, below)
        log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return -(log_high + torch.log1p(-(log_low - log_high).exp()))


class DiscretizedLogistic(Likelihood):
    """A logistic distribution, trained and evaluated as the probability of a value's bin (section 2.1)."""

    def forward(self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """-ln of the probability of a value's bin, in nats per value."""
        images = ((target + 0.5) * 255).round().to(torch.uint8)
        return self.nats(reconstruction, images).mean()

    def nats(
        self, reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """-ln(sigmoid(above) - sigmoid(below)), as sigmoid(above) sigmoid(-below) (1 - exp(below - above))."""
        above, below = _edges(reconstruction, images, self.log_scale)
        return -(F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(below - above)))


def _edges(
    reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"], log_scale: Float[Tensor, "c 1 1"]
) -> tuple[Tensor, Tensor]:
    """The upper and lower edge of each value's bin, less the reconstruction, over the scale; infinite at 255 and 0."""
    offset = images.to(reconstruction.dtype) * BIN - 0.5 - reconstruction
    inverse = (-log_scale.to(reconstruction.dtype)).exp()
    above = torch.where(images == 255, torch.inf, (offset + BIN / 2) * inverse)
    below = torch.where(images == 0, -torch.inf, (offset - BIN / 2) * inverse)
    return above, below


def make_likelihood(config: VQVAEConfig, data_variance: float) -> Likelihood | None:
    """The likelihood of a configuration; None where the loss is the squared error."""
    if config.likelihood == "mse":
        return None
    kind = GaussianLikelihood if config.likelihood == "gaussian" else DiscretizedLogistic
    return kind(config, data_variance)
