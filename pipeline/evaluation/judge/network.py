"""The networks that judge images: two architectures, each with few features, which it classifies by."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

Number: TypeAlias = Literal[1, 2]

FEATURES = 64
_WIDTH = 32  # channels of the first feature maps
_MOST_INSIDE = 32  # positions a side of the first feature maps; their stride grows with the image
_FEW_INSIDE = 16  # pixels a side, which are halved once less


class JudgeNetwork(nn.Module):
    """Features are the mean of the last feature maps over all positions, and logits are linear in them.

    Judge 1 has residual blocks and halves by strided convolutions (He et al. 2016), judge 2 is a plain stack that
    halves by maxima (Simonyan and Zisserman 2015); both with batch normalisation. Images of any size.
    """

    def __init__(self, number: Number, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        first = -(-max(height, width) // _MOST_INSIDE)
        # Each position sees the pixels up to those that its neighbours stand on: none is left out.
        entry = _convolution(channels, _WIDTH, kernel=2 * first + 1, stride=first)
        strides = (1 if max(height, width) <= _FEW_INSIDE else 2, 2, 2)
        body = _residual(strides) if number == 1 else _plain(strides)
        self.maps = nn.Sequential(entry, *body, _convolution(8 * _WIDTH, FEATURES, kernel=1))
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """What images are compared by."""
        values = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.maps(values).float().mean((2, 3))

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return self.head(self.features(images))


def _convolution(before: int, after: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class _ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, whose mean over 2 x 2 positions leaves no pixel out (He et al. 2019)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(before, after, stride=stride)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        mean = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(mean, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return F.relu(self.norm(self.second(self.first(maps))) + self.shortcut(maps))


def _residual(strides: tuple[int, ...]) -> list[nn.Module]:
    return [_ResidualBlock(_WIDTH << level, _WIDTH << level + 1, stride) for level, stride in enumerate(strides)]


def _plain(strides: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for level, stride in enumerate(strides):
        before, after = _WIDTH << level, _WIDTH << level + 1
        layers += [nn.MaxPool2d(stride, ceil_mode=True), _convolution(before, after), _convolution(after, after)]
    return layers
