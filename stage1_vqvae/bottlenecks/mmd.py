"""The Wasserstein autoencoder: codes without noise, held to N(0, I) as a whole by their maximum mean discrepancy.

Tolstikhin et al. 2017, "Wasserstein Auto-Encoders", section 3 (WAE-MMD) and appendix C (the kernel).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import BottleneckOutput
from stage1_vqvae.bottlenecks.identity import IdentityBottleneck
from stage1_vqvae.config import VQVAEConfig

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel's width, in units of E|x - y|^2 of two N(0, I)


def kernel_mean(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    """The mean over all pairs of the inverse multiquadrics C / (C + |x - y|^2), averaged over their widths C."""
    squared = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    widths = [scale * 2 * x.shape[1] for scale in _SCALES]
    return torch.stack([(width / (width + squared)).mean() for width in widths]).mean()


def squared_mmd(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy of two samples, all pairs counted: 0 for equal samples, never negative."""
    return kernel_mean(x, x) + kernel_mean(y, y) - 2 * kernel_mean(x, y)


class MMDBottleneck(IdentityBottleneck):
    """The penalty compares the codes of a micro-batch, a vector an image, with as many draws from N(0, I)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        self.weight = config.mmd_weight

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        with torch.autocast(outputs.device.type, enabled=False):
            passed = super().forward(outputs, progress)
            codes = rearrange(passed.quantised, "n dim h w -> n (dim h w)")
            discrepancy = squared_mmd(codes, torch.randn_like(codes))
            return passed._replace(loss=self.weight * discrepancy, metrics={"mmd": discrepancy.detach()})
