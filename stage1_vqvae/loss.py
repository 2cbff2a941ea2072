"""Reconstruction losses: squared error, or the likelihood of pixels around the reconstruction.

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

BIN = 1 / 255  # the distance of two grey values, of images on [-1/2, 1/2]
_LEAST = math.log(0.1 * BIN)
_SPEED = 10.0  # the log scale moves this many times faster than a weight: it has far to go, from the data's on


class Reconstruction(nn.Module, ABC):
    """How far a reconstruction is from its image."""

    @abstractmethod
    def forward(
        self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], nmse: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The training loss, a mean over pixel values; `nmse` is the squared error over the data's variance."""


class SquaredError(Reconstruction):
    """MSE over the data's variance: 1 is what predicting one constant grey costs."""

    def forward(
        self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], nmse: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The normalised squared error."""
        return nmse


class Likelihood(Reconstruction):
    """A distribution around each reconstructed value, with one learned scale a channel."""

    def __init__(self, config: VQVAEConfig, data_variance: float) -> None:
        super().__init__()
        start = 0.5 * math.log(max(data_variance, BIN**2)) / _SPEED
        self.slow_log_scale = nn.Parameter(torch.full((config.channels, 1, 1), start))

    @property
    def log_scale(self) -> Float[Tensor, "c 1 1"]:
        """Log of the scale, of images on [-1/2, 1/2]; it nears, but never reaches, that of a tenth of a grey value."""
        return _LEAST + F.softplus(_SPEED * self.slow_log_scale - _LEAST)

    @abstractmethod
    def nats(
        self, reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """-ln P of each of 256 values, a normalised distribution: the ends have all that lies beyond them."""


class GaussianLikelihood(Likelihood):
    """Trained as a density; measured as the probability of a value's bin."""

    def forward(
        self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], nmse: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """-ln of the density of values on 0..255, in nats a value."""
        log_scale = self.log_scale.float()
        standardised = (target - reconstruction) * (-log_scale).exp()
        return (0.5 * standardised.square() + log_scale).mean() + 0.5 * math.log(2 * math.pi) - math.log(BIN)

    def nats(
        self, reconstruction: Float[Tensor, "n c h w"], images: UInt8[Tensor, "n c h w"]
    ) -> Float[Tensor, "n c h w"]:
        """-ln(Phi(above) - Phi(below))."""
        above, below = _edges(reconstruction, images, self.log_scale)
        # In the upper tail both are near 1: there the difference is taken of what lies above.
        flip = below > 0
        high, low = torch.where(flip, -below, above), torch.where(flip, -above, below)
        log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return -(log_high + torch.log1p(-(log_low - log_high).exp()))


class DiscretizedLogistic(Likelihood):
    """Trained and measured as the probability of a value's bin."""

    def forward(
        self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], nmse: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Nats a value."""
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
    """The ends of each value's bin around the reconstruction, in units of the scale; infinite at 0 and 255."""
    offset = images.to(reconstruction.dtype) * BIN - 0.5 - reconstruction
    inverse = (-log_scale.to(reconstruction.dtype)).exp()
    above = torch.where(images == 255, torch.inf, (offset + BIN / 2) * inverse)
    below = torch.where(images == 0, -torch.inf, (offset - BIN / 2) * inverse)
    return above, below


def reconstruction_loss(config: VQVAEConfig, data_variance: float) -> Reconstruction:
    """What a configuration asks for."""
    if config.likelihood == "mse":
        return SquaredError()
    kind = GaussianLikelihood if config.likelihood == "gaussian" else DiscretizedLogistic
    return kind(config, data_variance)
