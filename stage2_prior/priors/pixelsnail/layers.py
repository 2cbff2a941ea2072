"""What PixelSNAIL is made of: gated residual blocks of causal convolutions, and causal attention among them.

Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", section 2. What differs: all
heads of attention share one set of keys and values (multi-query attention; Shazeer 2019, "Fast Transformer Decoding:
One Write-Head is All You Need"), since sampling reads all of them for every position; queries, keys and values are
linear projections; a position may attend to a null key besides earlier positions; and the output of attention is added
to the features directly.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.causal_attention import causal_attention
from stage2_prior.priors.conditioning import ClassShift, Condition
from stage2_prior.priors.dropout import Dropout
from stage2_prior.priors.pixelcnn.layers import HorizontalConv, VerticalConv


class FirstConv(nn.Module):
    """The positions of a k x k window that come before its centre: the rows above, and the row's left part."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.above = VerticalConv(in_channels, out_channels, kernel, strict=True)
        self.left = HorizontalConv(in_channels, out_channels, kernel, strict=True, bias=False)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        result: Tensor = self.above(features) + self.left(features)
        return result


class CornerConv(nn.Conv2d):
    """The upper left quarter of a k x k window, the position itself included: a 2x2 kernel for k = 3."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel // 2 + 1)
        self.pad = (kernel // 2, 0, kernel // 2, 0)  # left, right, top, bottom

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return super().forward(F.pad(features, self.pad))


class GatedBlock(nn.Module):
    """Two causal convolutions and a gate, added to the features. Classes and coarser levels shift the gate's input."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.first = CornerConv(hidden, hidden, config.kernel)
        self.second = CornerConv(hidden, 2 * hidden, config.kernel)
        self.dropout = Dropout(config.dropout)
        self.shift = ClassShift(config.num_classes, 2 * hidden) if config.num_classes else None
        self.condition_proj = nn.Conv2d(hidden, 2 * hidden, 1, bias=False) if config.coarser else None

    def forward(self, features: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        inner = F.elu(self.first(F.elu(features)))
        activations = self.second(self.dropout(inner))
        if self.shift is not None:
            activations = activations + rearrange(self.shift(condition.labels), "n c -> n c 1 1").to(activations)
        if self.condition_proj is not None:
            activations = activations + self.condition_proj(condition.features)
        a, b = activations.chunk(2, dim=1)
        return features + a * b.sigmoid()


class CausalAttention(nn.Module):
    """Each position attends to all strictly earlier ones, by keys and values of their features and their codes.

    Keys and values are shifted by one position, with a null key and value (of 0) in front: position 0 attends to that
    alone, and the usual causal mask is right.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden, self.heads = config.hidden, config.heads
        self.position_proj = nn.Conv2d(2, hidden, 1, bias=False)
        self.q_proj = nn.Conv2d(hidden, hidden, 1)
        self.kv_proj = nn.Conv2d(2 * hidden, 2 * (hidden // self.heads), 1)
        self.out_proj = nn.Conv2d(hidden, hidden, 1, bias=False)

    def forward(
        self,
        features: Float[Tensor, "n c h w"],
        embedded: Float[Tensor, "n c h w"],
        coordinates: Float[Tensor, "1 2 h w"],
    ) -> Float[Tensor, "n c h w"]:
        located = features + self.position_proj(coordinates)
        queries = rearrange(self.q_proj(located), "n (heads dim) h w -> n heads (h w) dim", heads=self.heads)
        sources = torch.cat([located, embedded.to(located.dtype)], 1)
        keys_values = rearrange(self.kv_proj(sources), "n c h w -> n 1 (h w) c")
        keys, values = F.pad(keys_values[:, :, :-1], (0, 0, 1, 0)).chunk(2, dim=3)
        attended = causal_attention(queries, keys, values)
        merged = rearrange(attended, "n heads (h w) dim -> n (heads dim) h w", h=features.shape[2])
        result: Tensor = features + self.out_proj(merged)
        return result


class Trunk(nn.Module):
    """Embedded codes to features: all of PixelSNAIL except the head."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.size = (config.height, config.width)
        self.first = FirstConv(config.hidden, config.hidden, config.first_kernel)
        self.position_proj = nn.Conv2d(2, config.hidden, 1, bias=False)
        every = config.attention_every
        groups = [min(every, config.layers - done) for done in range(0, config.layers, every)]
        self.groups = nn.ModuleList(nn.ModuleList(GatedBlock(config) for _ in range(count)) for count in groups)
        self.attentions = nn.ModuleList(CausalAttention(config) for _ in groups)

    def forward(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        coordinates = self.coordinates()[:, :, : embedded.shape[2], : embedded.shape[3]]
        features = self.first(embedded) + self.position_proj(coordinates)
        for group, attention in zip(self.groups, self.attentions, strict=True):
            for block in blocks(group):
                features = block(features, condition)
            features = attention(features, embedded, coordinates)
        return features

    def coordinates(self) -> Float[Tensor, "1 2 h w"]:
        """Row and column of each position of a whole map, from -1 to 1."""
        like = self.position_proj.weight
        axes = [(torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (2 / size) - 1 for size in self.size]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def blocks(group: nn.Module) -> list[GatedBlock]:
    """The blocks of a group."""
    return [block for block in group.children() if isinstance(block, GatedBlock)]
