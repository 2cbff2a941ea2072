"""PatchGAN: a discriminator of patches of images and of reconstructions, against the blur of squared error.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 (patches); Esser et
al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1, with the hinge loss of its code.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.config import VQVAEConfig

_SCORES = 8  # rows of scores of a 32x32 image and of larger ones, up to that many strided convolutions:
_FEWEST, _MOST = 2, 4


class DiscriminatorOutput(NamedTuple):
    """The losses of a batch of images and their reconstructions.

    `discriminator` trains the discriminator alone; `generator`, the adversarial term, and `matching`, the distance
    between its features, all but the discriminator. `accuracy` is the fraction of patches that it judges rightly.
    """

    discriminator: Float[Tensor, ""]
    generator: Float[Tensor, ""]
    matching: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


class Discriminator(nn.Module):
    """Images (n, channels, h, w) -> a score for each of their patches, high for real ones.

    Patches grow with the image: there are 8 to 15 rows of scores for 32 to 255 pixels, with another strided convolution
    for each doubling, so that patches are of 18, 38 and 78 pixels.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        narrow, wide = max(1, config.hidden // 2), config.hidden
        widths = [config.channels, narrow, *[wide] * (_strided(config) - 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
            for inputs, outputs in pairwise(widths)
        )
        self.score = nn.Conv2d(wide, 1, 3, padding=1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, list[Tensor]]:
        """The scores (n, 1, rows, columns) of patches, and the features of each stage."""
        features, found = images, []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return self.score(features), found

    def losses(self, real: Float[Tensor, "n c h w"], fake: Float[Tensor, "n c h w"]) -> DiscriminatorOutput:
        """Hinge losses of both sides. No parameter gets a gradient from both: one optimizer can step on their sum.

        Of a batch the first half is judged: at equal minutes the steps that this saves are worth more.
        """
        judged = -(-len(real) // 2)
        real, fake = real[:judged], fake[:judged]
        scores, features = self(torch.cat([real, fake.detach()]))
        of_real, of_fake = scores.chunk(2)
        hinge = (1 - of_real).relu().mean() + (1 + of_fake).relu().mean()
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        scores, own = torch.func.functional_call(self, frozen, (fake,))
        distances = [F.l1_loss(o, f.detach()[: len(real)]) for o, f in zip(own, features, strict=True)]
        right = ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        return DiscriminatorOutput(hinge, -scores.mean(), torch.stack(distances).mean(), right)


def _strided(config: VQVAEConfig) -> int:
    """How many strided convolutions: as many as leave `_SCORES` rows and columns of scores or more, within bounds."""
    return min(_MOST, max(_FEWEST, (min(config.height, config.width) // _SCORES).bit_length() - 1))
