"""What a prior is conditioned on besides earlier codes: the class, and the codes of coarser levels.

Both shift the activations of every gated layer, or the inputs of every block: the class by the same amount at all
positions, coarser codes at each position differently (van den Oord et al. 2016, "Conditional Image Generation with
PixelCNN Decoders", section 2.3, equations 4 and 5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.priors.dropout import Dropout


class Condition(NamedTuple):
    """Labels, and features of the coarser levels on this level's grid; None for a prior without them."""

    labels: Int[Tensor, "n"] | None
    features: Float[Tensor, "n hidden h w"] | None


UNKNOWN = -1  # the label of an image whose class is unknown


class ClassShift(nn.Embedding):
    """A shift of activations for each class; zero for images whose class is unknown."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        nn.init.normal_(self.weight, std=0.1)  # small, so that classes start out alike and learn from each other

    def forward(self, labels: Int[Tensor, "n"]) -> Float[Tensor, "n channels"]:
        return super().forward(labels.clamp(min=0)) * (labels != UNKNOWN)[:, None]


class CoarserLevels(nn.Module):
    """Codes of coarser levels -> conditioning features on this level's grid (n, hidden, h, w), for every layer.

    All coarser codes are drawn before the first code of this level, so these convolutions need not be causal
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
                Dropout(dropout),
                nn.Conv2d(hidden, hidden, 3, padding=1),
            )
            for _ in range(blocks)
        )

    def forward(self, coarser: Sequence[Int[Tensor, "n _ _"]], size: tuple[int, int]) -> Float[Tensor, "n hidden h w"]:
        """Features of all levels together, on a grid of `size` that is a multiple of the grid of each of them."""
        features = torch.zeros(())
        for embedding, codes in zip(self.embeddings, coarser, strict=True):
            embedded = rearrange(embedding(codes), "n h w c -> n c h w")
            features = features.to(embedded) + F.interpolate(embedded, size, mode="nearest")
        for block in self.blocks:
            features = features + block(features)
        return features
