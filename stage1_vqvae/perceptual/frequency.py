"""A distance of spatial frequencies that attends to those which are reconstructed worst.

Jiang et al. 2021, "Focal Frequency Loss for Image Reconstruction and Synthesis", equations 8 and 9.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stage1_vqvae.bottlenecks.base import at_least_float32, full_precision

_LEAST = 1e-30  # in place of a largest weight of 0, of images that are equal


def focal_frequency(
    reconstruction: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], alpha: float = 1.0
) -> Float[Tensor, ""]:
    """The mean over frequencies, channels and images of w |F(reconstruction) - F(target)|^2 (equation 9).

    F is the orthonormal two-dimensional DFT. w = |F(reconstruction) - F(target)|^alpha, over its maximum in each image
    and channel, has no gradient (equation 8). With alpha 0 this is the mean squared error of the pixels, by Parseval's
    theorem. In float32 at least, whatever autocast is around.
    """
    with full_precision(target.device):
        difference = at_least_float32(reconstruction) - at_least_float32(target)
        # The DFT of real values at -f is the conjugate of that at f: half of the frequencies say all.
        spectrum = torch.fft.rfft2(difference, norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        weight = power.detach().pow(alpha / 2)
        weight = weight / weight.amax((-2, -1), keepdim=True).clamp(min=_LEAST)
        both = torch.full((spectrum.shape[-1],), 2.0, dtype=power.dtype, device=power.device)
        both[0] = 1  # the columns that are their own mirror image
        if difference.shape[-1] % 2 == 0:
            both[-1] = 1
        return (weight * power * both).sum() / difference.numel()
