"""What a prior is conditioned on besides earlier codes: the class, and the codes of coarser levels.

Both shift the activations of every gated layer, the class alike at all positions, coarser codes at each its own way
(van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2.3, equations 4 and 5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Condition(NamedTuple):
    """The classes, and features of the coarser levels on this level's grid; None where there are none of them."""

    labels: Int[Tensor, "n"] | None
    features: Float[Tensor, "n hidden h w"] | None


UNKNOWN = -1  # in place of a label: of no class in particular


class ClassShift(nn.Embedding):
    """A shift of activations for each class; none for images whose class is unknown."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        nn.init.normal_(self.weight, std=0.1)  # classes start out alike, and share what they learn

    def forward(self, labels: Int[Tensor, "n"]) -> Float[Tensor, "n channels"]:
        return super().forward(labels.clamp(min=0)) * (labels != UNKNOWN)[:, None]


class CoarserLevels(nn.Module):
    """Codes of coarser levels -> features on this level's grid (n, hidden, h, w), which every layer may look at.

    All coarser codes are known before the first of this level is drawn, so these convolutions look all around
    (Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.2).
    """

    def __init__(self, num_codes: Sequence[int], hidden: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, hidden) for count in num_codes)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Conv2d(hidden, hidden, 3, padding=1),
            )
            for _ in range(blocks)
        )

    def forward(self, coarser: Sequence[Int[Tensor, "n _ _"]], size: tuple[int, int]) -> Tensor:
        """Features of all levels together, for a grid of `size` that is a multiple of each of theirs."""
        known = torch.zeros(())
        for embedding, codes in zip(self.embeddings, coarser, strict=True):
            embedded = rearrange(embedding(codes), "n h w c -> n c h w")
            known = known.to(embedded) + F.interpolate(embedded, size, mode="nearest")
        for block in self.blocks:
            known = known + block(known)
        return known
