"""What PixelSNAIL is made of: gated residual blocks of causal convolutions, and causal attention among them.

Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", section 2. What differs: attention has
several heads that ask the same keys and values (Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You
Need"), since drawing reads them anew for every position; they come from features by one linear map each; beside what is
earlier a position may attend to nothing; and what attention finds is added to the features directly.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.conditioning import ClassShift, Condition
from stage2_prior.config import PriorConfig
from stage2_prior.layers import HorizontalConv, VerticalConv


class FirstConv(nn.Module):
    """All that comes before a position within a k x k window: the rows above, and what lies to the left."""

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
        self.dropout = nn.Dropout(config.dropout)
        self.shift = ClassShift(config.num_classes, 2 * hidden) if config.num_classes else None
        self.look = nn.Conv2d(hidden, 2 * hidden, 1, bias=False) if config.coarser else None

    def forward(self, features: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        inner = F.elu(self.first(F.elu(features)))
        activations = self.second(self.dropout(inner))
        if self.shift is not None:
            activations = activations + rearrange(self.shift(condition.labels), "n c -> n c 1 1").to(activations)
        if self.look is not None:
            activations = activations + self.look(condition.features)
        a, b = activations.chunk(2, dim=1)
        return features + a * b.sigmoid()


class CausalAttention(nn.Module):
    """Each position asks what all strictly earlier ones tell of their features and their codes.

    What is told is moved on by one position, and before it stands nothing (a key and a value of 0): position 0 sees
    that alone, and no mask is needed but the usual triangle.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden, self.heads = config.hidden, config.heads
        self.place = nn.Conv2d(2, hidden, 1, bias=False)
        self.ask = nn.Conv2d(hidden, hidden, 1)
        self.tell = nn.Conv2d(2 * hidden, 2 * (hidden // self.heads), 1)
        self.merge = nn.Conv2d(hidden, hidden, 1, bias=False)

    def forward(
        self,
        features: Float[Tensor, "n c h w"],
        embedded: Float[Tensor, "n c h w"],
        coordinates: Float[Tensor, "1 2 h w"],
    ) -> Float[Tensor, "n c h w"]:
        located = features + self.place(coordinates)
        queries = rearrange(self.ask(located), "n (heads dim) h w -> n heads (h w) dim", heads=self.heads)
        told = rearrange(self.tell(torch.cat([located, embedded.to(located.dtype)], 1)), "n c h w -> n 1 (h w) c")
        told = F.pad(told[:, :, :-1], (0, 0, 1, 0)).expand(-1, self.heads, -1, -1)
        if told.device.type == "cpu" and told.dtype == torch.bfloat16:  # there its backward pass takes thrice as long
            queries, told = queries.float(), told.float()
        keys, values = told.chunk(2, dim=3)
        with torch.autocast(told.device.type, enabled=False):
            answers = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        merged = rearrange(answers, "n heads (h w) dim -> n (heads dim) h w", h=features.shape[2])
        result: Tensor = features + self.merge(merged)
        return result


class Trunk(nn.Module):
    """Embedded codes to features: all of PixelSNAIL but the head."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.size = (config.height, config.width)
        self.first = FirstConv(config.hidden, config.hidden, config.first_kernel)
        self.place = nn.Conv2d(2, config.hidden, 1, bias=False)
        every = config.attention_every
        groups = [min(every, config.layers - done) for done in range(0, config.layers, every)]
        self.groups = nn.ModuleList(nn.ModuleList(GatedBlock(config) for _ in range(count)) for count in groups)
        self.attentions = nn.ModuleList(CausalAttention(config) for _ in groups)

    def forward(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        where = self.coordinates()[:, :, : embedded.shape[2], : embedded.shape[3]]
        features = self.first(embedded) + self.place(where)
        for group, attention in zip(self.groups, self.attentions, strict=True):
            for block in blocks(group):
                features = block(features, condition)
            features = attention(features, embedded, where)
        return features

    def coordinates(self) -> Float[Tensor, "1 2 h w"]:
        """Row and column of each position of a whole map, from -1 to 1."""
        like = self.place.weight
        axes = [(torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) * (2 / size) - 1 for size in self.size]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def blocks(group: nn.Module) -> list[GatedBlock]:
    """The blocks of a group."""
    return [block for block in group.children() if isinstance(block, GatedBlock)]
