"""PatchGAN: a discriminator of patches of images and of reconstructions, against the blur of squared error.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 (patches); Esser et
al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1, with the hinge loss of its code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.config import VQVAEConfig

RAMP_START, RAMP_LENGTH = 0.3, 0.1  # fractions of the training


class DiscriminatorLosses(NamedTuple):
    """`discriminator` trains the discriminator alone; `generator`, the adversarial term, all but the discriminator."""

    discriminator: Float[Tensor, ""]
    generator: Float[Tensor, ""]


class Discriminator(nn.Sequential):
    """Images (n, channels, h, w) -> a score for each of their patches (n, 1, h // 4, w // 4), high for real ones."""

    def __init__(self, config: VQVAEConfig) -> None:
        narrow, wide = config.hidden // 2, config.hidden
        super().__init__(
            nn.Conv2d(config.channels, narrow, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(wide, 1, 3, padding=1),
        )

    def losses(self, real: Float[Tensor, "n c h w"], fake: Float[Tensor, "n c h w"]) -> DiscriminatorLosses:
        """Hinge losses of both sides. No parameter gets a gradient from both: one optimizer can step on their sum."""
        hinge = (1 - self(real)).relu().mean() + (1 + self(fake.detach())).relu().mean()
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return DiscriminatorLosses(hinge, -torch.func.functional_call(self, frozen, (fake,)).mean())


def discriminator_ramp(progress: float) -> float:
    """The factor on the adversarial term's weight: 0 until the decoder can reconstruct, then rising linearly to 1.

    `progress` is step / total steps: 0 up to 0.3, 1 from 0.4 on.
    """
    return min(1.0, max(0.0, (progress - RAMP_START) / RAMP_LENGTH))
