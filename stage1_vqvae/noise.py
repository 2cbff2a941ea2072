"""Noise: on images, of which clean ones are to be made, and as samples of N(0, 1) that belong to an image."""

import zlib

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def add_noise(
    images: UInt8[Tensor, "n c h w"], standard_deviation: float, generator: torch.Generator | None = None
) -> UInt8[Tensor, "n c h w"]:
    """Images with Gaussian noise, drawn anew (Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3).

    The standard deviation is that of pixels on [0, 1]. The sum is rounded and cut to what a pixel of a file can be, so
    that noise cannot make black darker. `generator`: by default torch's own.
    """
    if not standard_deviation:
        return images
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return _sum(images, standard_deviation, noise)


def add_own_noise(images: UInt8[Tensor, "n c h w"], standard_deviation: float) -> UInt8[Tensor, "n c h w"]:
    """The same with noise that is a function of each image alone: whenever an image is measured it is as noisy."""
    if not standard_deviation:
        return images
    noise = image_noise(images, tuple(images.shape[1:]))
    return _sum(images, standard_deviation, noise.to(images.device))


def _sum(
    images: UInt8[Tensor, "n c h w"], standard_deviation: float, noise: Float[Tensor, "n c h w"]
) -> UInt8[Tensor, "n c h w"]:
    return (images + 255 * standard_deviation * noise).round().clamp(0, 255).to(torch.uint8)


def image_noise(images: UInt8[Tensor, "n c h w"], shape: tuple[int, ...]) -> Float[Tensor, "n ..."]:
    """Samples of N(0, 1) of this shape, one per image and a function of that image alone, not of its batch."""
    seeds = [zlib.crc32(image.tobytes()) for image in images.cpu().numpy()]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise) if noise else torch.zeros(0, *shape)
