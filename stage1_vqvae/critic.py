"""A critic of patches: an adversary that tells reconstructions from images, since squared error blurs.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 (patches); Esser et
al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1, with the hinge loss of its code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.config import VQVAEConfig

_BEGINS, _RISES = 0.3, 0.1  # share of the training before the decoder hears of the critic, and until it does in full


class CriticLoss(NamedTuple):
    """`critic` trains the critic alone, `decoder` all but the critic."""

    critic: Float[Tensor, ""]
    decoder: Float[Tensor, ""]


class Critic(nn.Sequential):
    """Images (n, channels, h, w) -> a score for each of their patches, high for real ones."""

    def __init__(self, config: VQVAEConfig) -> None:
        narrow, wide = config.hidden // 2, config.hidden
        super().__init__(
            nn.Conv2d(config.channels, narrow, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(wide, 1, 3, padding=1),
        )

    def losses(self, real: Float[Tensor, "n c h w"], fake: Float[Tensor, "n c h w"]) -> CriticLoss:
        """Hinge losses of both sides, whose gradients do not meet: one optimizer can step on their sum."""
        hinge = (1 - self(real)).relu().mean() + (1 + self(fake.detach())).relu().mean()
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return CriticLoss(hinge, -torch.func.functional_call(self, frozen, (fake,)).mean())


def heard(progress: float) -> float:
    """The share of its weight that the critic's word has: none until the decoder can reconstruct."""
    return min(1.0, max(0.0, (progress - _BEGINS) / _RISES))
