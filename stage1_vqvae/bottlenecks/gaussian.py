"""The variational autoencoder: a Gaussian posterior for each image, sampled in training.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes", equation 10 and appendix B.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import (
    BottleneckOutput,
    ContinuousBottleneck,
    at_least_float32,
    full_precision,
    warm_up,
)
from stage1_vqvae.config import VQVAEConfig

_LEAST, _GREATEST = -30.0, 20.0  # log variances: far beyond those of any training, and exp stays finite


def kl_to_standard_normal(
    mean: Float[Tensor, "n dim h w"], log_variance: Float[Tensor, "n dim h w"]
) -> Float[Tensor, "n dim h w"]:
    """KL(N(mean, variance) | N(0, 1)) of each unit, in nats (appendix B)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


class GaussianBottleneck(ContinuousBottleneck):
    """The encoder gives mean and log variance. In training the decoder's input is a sample, otherwise the mean.

    Computes in float32 whatever the precision around it.
    """

    sum_names = (*ContinuousBottleneck.sum_names, "kl")

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.inputs, self.outputs = 2 * config.dimension, config.dimension
        self.kl_scale = config.kl_scale / config.values  # on nats per image, as the loss is a mean over pixel values

    def forward(self, outputs: Float[Tensor, "n twice h w"], progress: float) -> BottleneckOutput:
        with full_precision(outputs.device):
            mean, log_variance = _parameters(at_least_float32(outputs))
            kl = kl_to_standard_normal(mean, log_variance).sum((1, 2, 3)).mean()
            return BottleneckOutput(
                quantized=_sample(mean, log_variance, torch.randn_like(mean)) if self.training else mean,
                codes=mean.detach(),
                loss=self.kl_scale * warm_up(progress) * kl,
                metrics={"kl": kl.detach()},
            )

    def encode(self, outputs: Float[Tensor, "n twice h w"]) -> Float[Tensor, "n dim h w"]:
        """The means."""
        return outputs.detach().chunk(2, 1)[0]

    def decode(self, codes: Float[Tensor, "n dim h w"]) -> Float[Tensor, "n dim h w"]:
        """The codes themselves."""
        return codes

    def sample(
        self, outputs: Float[Tensor, "n twice h w"], noise: Float[Tensor, "n dim h w"]
    ) -> Float[Tensor, "n dim h w"]:
        """A sample of the posterior of each image."""
        return _sample(*_parameters(at_least_float32(outputs)), noise)

    def measure(self, outputs: Float[Tensor, "n twice h w"], codes: Float[Tensor, "n dim h w"]) -> dict[str, Tensor]:
        """Also the KL of each unit."""
        kl = kl_to_standard_normal(*_parameters(outputs.double())).sum(0)
        return {**super().measure(outputs, codes), "kl": kl}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Also the mean KL per unit in nats, and the bits per image that all units cost under the prior N(0, I).

        A KL near 0 with few active units means that the posterior has collapsed.
        """
        kl = sums["kl"] / sums["images"]
        bits = float(kl.sum()) / math.log(2)
        return {**super().summarise(sums), "kl_per_unit": float(kl.mean()), "bits_per_image": bits}


def _parameters(outputs: Float[Tensor, "n twice h w"]) -> tuple[Tensor, Tensor]:
    mean, log_variance = outputs.chunk(2, 1)
    return mean, log_variance.clamp(_LEAST, _GREATEST)


def _sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    return mean + (0.5 * log_variance).exp() * noise
