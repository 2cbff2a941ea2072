"""The interface of every perceptual distance: how far two images are from each other in frozen features.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.bottlenecks.base import at_least_float32, full_precision

FLAT = 0.01  # squared length of a vector, on average 1, below which it counts as flat: noise is not enlarged


class FeatureDistance(nn.Module, ABC):
    """Images (n, c, h, w) on [-1/2, 1/2] -> one distance, the mean over the batch; c is 1 or 3.

    All that is learned is in persistent buffers: a checkpoint restores it bit for bit, and neither an optimizer nor DDP
    sees anything to train.
    """

    def forward(self, reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """Equation 1 with all weights 1: squared differences of unit-length channel vectors, summed over channels and
        layers, averaged over positions and images.

        The gradient is that of the reconstruction alone. In float32 at least, whatever autocast is around: bfloat16
        does not tell neighbouring grey levels apart.
        """
        with full_precision(target.device):
            with torch.no_grad():
                expected = self.layers(at_least_float32(target))
            pairs = zip(self.layers(at_least_float32(reconstruction)), expected, strict=True)
            return torch.stack([(own - other).square().sum(1).mean() for own, other in pairs]).sum()

    @abstractmethod
    def layers(self, images: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n channels rows columns"]]:
        """The feature maps of each layer, with channel vectors of unit length, or shorter where an image is flat."""

    @abstractmethod
    def fit(self, images: Sequence[Float[Tensor, "_ c h w"]], generator: torch.Generator) -> None:
        """Learn the features, once before training, from a few batches of images on [-1/2, 1/2]: a thousand are enough.

        The same images and generator give the same features.
        """


def unit_length(maps: Float[Tensor, "n c h w"], least: float = FLAT) -> Float[Tensor, "n c h w"]:
    """Channel vectors v as v / sqrt(|v|^2 + least): of unit length unless |v|^2 is as small as `least`.

    In contrast to v / (|v| + least) it has a gradient at 0.
    """
    return maps * (maps.square().sum(1, keepdim=True) + least).rsqrt()
