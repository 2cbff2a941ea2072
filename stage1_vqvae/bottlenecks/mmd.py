"""The Wasserstein autoencoder: no noise; a penalty on the maximum mean discrepancy between codes and N(0, I).

Tolstikhin et al. 2017, "Wasserstein Auto-Encoders", section 3 (WAE-MMD) and appendix C (the kernel).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput, full_precision
from stage1_vqvae.bottlenecks.identity import IdentityBottleneck
from stage1_vqvae.config import VQVAEConfig

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel's width, in units of E|x - y|^2 of two N(0, I)


def kernel(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """The inverse multiquadric C / (C + |x - y|^2) of each pair, averaged over the widths C."""
    squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    widths = [scale * 2 * x.shape[1] for scale in _SCALES]
    return torch.stack([width / (width + squared) for width in widths]).mean(0)


def squared_mmd(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    """An estimate of the squared maximum mean discrepancy of two distributions from samples of two and more.

    Unbiased, as no vector is paired with itself: for equal distributions its mean is 0, and it may be negative.
    """
    return _mean_of_others(kernel(x, x)) + _mean_of_others(kernel(y, y)) - 2 * kernel(x, y).mean()


def _mean_of_others(pairs: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    n = pairs.shape[0]
    return (pairs.sum() - pairs.diagonal().sum()) / max(1, n * (n - 1))


class MMDBottleneck(IdentityBottleneck):
    """The penalty compares the codes of a micro-batch, one vector per image, with as many samples of N(0, I)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.weight = config.mmd_weight

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        with full_precision(outputs.device):
            output = super().forward(outputs, progress)
            codes = rearrange(output.quantized, "n dim h w -> n (dim h w)")
            discrepancy = squared_mmd(codes, torch.randn_like(codes))
            return output._replace(loss=self.weight * discrepancy, metrics={"mmd": discrepancy.detach()})
