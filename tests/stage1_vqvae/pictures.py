"""Images with edges, textures and flat parts, made for tests."""

import torch
from torch import Tensor
from torch.nn import functional as F


def drawn_images(n: int, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    """Floats (n, channels, size, size) on [-1/2, 1/2]: each a coarse pattern with sharp edges and some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    edges = F.interpolate(coarse, (size, size)) - 0.5
    grain = 0.05 * torch.randn(n, channels, size, size, generator=generator)
    return (edges + grain).clamp(-0.5, 0.5)
