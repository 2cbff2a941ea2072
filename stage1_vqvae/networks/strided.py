"""The encoder and the decoder: strided convolutions and residual blocks.

van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4.1: stride-2 convolutions with
4x4 kernels, then residual blocks (ReLU, 3x3, ReLU, 1x1); the decoder is the mirror image. Unlike the paper's, the
encoder's kernels after the last strided convolution are 1x1 by default. A code then describes its patch and little
around it; otherwise the code of an empty corner depends on the middle, and a prior has to learn that dependence.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from stage1_vqvae.config import VQVAEConfig


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv(relu(x)))), of the same shape (n, channels, h, w)."""

    def __init__(self, channels: int, inner_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, inner_channels, kernel, padding=kernel // 2, bias=False)
        self.conv1x1 = nn.Conv2d(inner_channels, channels, 1, bias=False)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return features + self.conv1x1(self.conv(features.relu()).relu())


class ResidualStack(nn.Sequential):
    """The residual blocks of a config, with kernels of this size, then a ReLU."""

    def __init__(self, config: VQVAEConfig, kernel: int) -> None:
        # A 1x1 kernel is cheap: the block can be as wide inside as outside.
        inner_channels = config.hidden if kernel == 1 else config.residual_channels
        blocks = [ResidualBlock(config.hidden, inner_channels, kernel) for _ in range(config.residual_blocks)]
        super().__init__(*blocks, nn.ReLU())


def feature_widths(config: VQVAEConfig) -> list[int]:
    """Channels after each strided convolution: half the width after the first of several (most pixels), else all."""
    count = config.downsampling.bit_length() - 1  # log2 of a power of two
    return [config.hidden // 2 if i == 0 and count > 1 else config.hidden for i in range(count)]


class Encoder(nn.Sequential):
    """Normalised images (n, channels, height, width) -> features (n, hidden, code_height, code_width)."""

    def __init__(self, config: VQVAEConfig) -> None:
        widths = [config.channels, *feature_widths(config)]
        strided: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            strided += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU()]
        kernel = config.encoder_kernel
        entry = nn.Conv2d(config.hidden, config.hidden, kernel, padding=kernel // 2)
        super().__init__(*strided, entry, ResidualStack(config, kernel))


class Decoder(nn.Sequential):
    """Code vectors (n, inputs, code_height, code_width) -> normalised images (n, channels, height, width)."""

    def __init__(self, config: VQVAEConfig, inputs: int) -> None:
        widths = [*reversed(feature_widths(config)), config.channels]
        transposed: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            transposed += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU()]
        entry = nn.Conv2d(inputs, config.hidden, 3, padding=1)
        super().__init__(entry, ResidualStack(config, 3), *transposed[:-1])  # no ReLU on the image itself


def down(config: VQVAEConfig) -> nn.Module:
    """Features (n, hidden, h, w) -> those of the next coarser level of codes (n, hidden, h/2, w/2)."""
    convolution = nn.Conv2d(config.hidden, config.hidden, 4, stride=2, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), ResidualStack(config, config.encoder_kernel))


def up(config: VQVAEConfig) -> nn.Module:
    """What the coarser levels add up to (n, hidden, h, w) -> the same on the next finer grid (n, hidden, 2h, 2w)."""
    convolution = nn.ConvTranspose2d(config.hidden, config.hidden, 4, stride=2, padding=1)
    return nn.Sequential(ResidualStack(config, 3), convolution)
