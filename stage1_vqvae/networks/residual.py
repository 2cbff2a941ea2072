"""An encoder and a decoder with residual blocks at every resolution, for images of 64 pixels and more.

After Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN), with three differences. Half
of that network's work is done at the resolution of the image: here space-to-depth is the first step and depth-to-space
the last (Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution"). There is no attention: it can be left
out without loss (Weber et al. 2024, "MaskBit"). And GroupNorm gives way to a norm over the channels of each position,
as in Liu et al. 2022, "A ConvNet for the 2020s": GroupNorm's statistics are those of the whole image, so that the code
of an empty corner would depend on the middle, and a prior would have to learn that. In the decoder it keeps the effect
of a code near its position.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import full_precision
from stage1_vqvae.config import VQVAEConfig

START = 0.1  # scale of the last layer's first weights: images begin within a few per cent of grey


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of (n, channels, h, w).

    In the precision of its input, with statistics in float32: autocast would have a norm of bfloat16 give float32, and
    the backward pass would need nearly twice the memory.
    """

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        with full_precision(features.device):
            last = features.permute(0, 2, 3, 1)  # of a tensor in channels_last nothing is copied
            return F.layer_norm(last, self.normalized_shape, weight, bias, self.eps).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), of the same shape (n, channels, h, w)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.first = _activated_convolution(channels, channels, kernel)
        self.second = _activated_convolution(channels, channels, kernel)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return features + self.second(self.first(features))


def feature_widths(config: VQVAEConfig) -> list[int]:
    """Channels at each resolution, finest first: all at that of the codes, half as many at each finer one, at least a
    quarter.

    >>> feature_widths(VQVAEConfig(network="residual", hidden=512, downsampling=16))
    [128, 128, 256, 512]
    """
    count = config.downsampling.bit_length() - 1  # log2 of a power of two; the finest has half the image's height
    return [max(config.hidden >> level, config.hidden // 4) for level in reversed(range(count))]


class Encoder(nn.Sequential):
    """Normalised images (n, channels, height, width) -> features (n, hidden, code_height, code_width)."""

    def __init__(self, config: VQVAEConfig) -> None:
        widths = feature_widths(config)
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * config.channels, widths[0], 3, padding=1)]
        for narrow, wide in pairwise(widths):
            layers += [*_blocks(config, narrow, 3), nn.Conv2d(narrow, wide, 4, stride=2, padding=1)]
        blocks = _blocks(config, config.hidden, config.encoder_kernel)
        super().__init__(*layers, *blocks, ChannelNorm(config.hidden), nn.SiLU())


class Decoder(nn.Sequential):
    """Code vectors (n, inputs, code_height, code_width) -> normalised images (n, channels, height, width)."""

    def __init__(self, config: VQVAEConfig, inputs: int) -> None:
        widths = feature_widths(config)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(inputs, config.hidden, 3, padding=1)]
        for wide, narrow in pairwise(widths):
            layers += [*_blocks(config, wide, 3), _finer(nn.Conv2d(wide, 4 * narrow, 3, padding=1))]
        last = _activated_convolution(widths[-1], 4 * config.channels, 3)
        with torch.no_grad():
            for parameter in last[-1].parameters():
                parameter.mul_(START)
        super().__init__(*layers, *_blocks(config, widths[-1], 3), last, nn.PixelShuffle(2))


def down(config: VQVAEConfig) -> nn.Module:
    """Features (n, hidden, h, w) -> those of the next coarser level of codes (n, hidden, h/2, w/2)."""
    convolution = nn.Conv2d(config.hidden, config.hidden, 4, stride=2, padding=1)
    blocks = _blocks(config, config.hidden, config.encoder_kernel)
    return nn.Sequential(convolution, *blocks, ChannelNorm(config.hidden), nn.SiLU())


def up(config: VQVAEConfig) -> nn.Module:
    """What the coarser levels add up to (n, hidden, h, w) -> the same on the next finer grid (n, hidden, 2h, 2w)."""
    convolution = nn.Conv2d(config.hidden, 4 * config.hidden, 3, padding=1)
    return nn.Sequential(*_blocks(config, config.hidden, 3), _finer(convolution))


def _blocks(config: VQVAEConfig, channels: int, kernel: int) -> list[nn.Module]:
    return [ResidualBlock(channels, kernel) for _ in range(config.residual_blocks)]


def _activated_convolution(channels: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(ChannelNorm(channels), nn.SiLU(), convolution)


def _finer(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution to four times the channels, which become a grid of twice the height and width.

    The four pixels of a position begin alike, or a chequered pattern would have to be unlearned first (Aitken et al.
    2017, "Checkerboard artifact free sub-pixel convolution").
    """
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(parameter[::4].repeat_interleave(4, 0))
    return nn.Sequential(convolution, nn.PixelShuffle(2))
