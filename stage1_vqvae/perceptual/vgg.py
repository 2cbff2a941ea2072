"""Features of VGG16 as trained on ImageNet: the distance known as LPIPS, without its learned weights of channels.

Zhang et al. 2018; Simonyan & Zisserman 2015, table 1, column D. The weights are given: stage 1 opens no file.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stage1_vqvae.perceptual.distance import FeatureDistance, unit_length

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels on [0, 1]
# Where torchvision has the convolutions in vgg16().features, by blocks, between which the sides are halved.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_WIDTHS = (64, 128, 256, 512, 512)  # channels of each block
_LEAST = 1e-10  # squared length below which a vector is shortened: the published distance shortens none


class VggFeatures(FeatureDistance):
    """The last maps of each block, relu1_2 to relu5_3; grey images count as three equal channels.

    The weights are buffers like all that others learn (59 MB in a checkpoint), so that a training resumes without the
    published file. Before `load` they are zero, and so is the distance.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        for block, width in zip(BLOCKS, _WIDTHS, strict=True):
            for index in block:
                self.register_buffer(f"weight{index}", torch.zeros(width, inputs, 3, 3))
                self.register_buffer(f"bias{index}", torch.zeros(width))
                inputs = width

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of torchvision's vgg16 by their names there, "features.0.weight" and so on."""
        with torch.no_grad():
            for name, tensor in self.named_buffers():
                kind = name.rstrip("0123456789")
                tensor.copy_(weights[f"features.{name.removeprefix(kind)}.{kind}"])

    def layers(self, images: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n channels rows columns"]]:
        """Five maps, of 64, 128, 256, 512 and 512 channels; fewer of images under 16 pixels, which cannot be halved so
        often."""
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        maps = ((images + 0.5 - mean) / deviation).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []
        for block in BLOCKS:
            if found:
                if min(maps.shape[2:]) < 2:
                    break
                maps = F.max_pool2d(maps, 2)
            for index in block:
                weight, bias = self.get_buffer(f"weight{index}"), self.get_buffer(f"bias{index}")
                maps = F.relu(F.conv2d(maps, weight, bias, padding=1))
            found.append(unit_length(maps, _LEAST))
        return found

    def fit(self, images: Sequence[Float[Tensor, "_ c h w"]], generator: torch.Generator) -> None:
        """Nothing: these features are the same for all images."""
