"""Causal convolutions without a blind spot, and the gated layer made of them.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2. The vertical stack at
row i depends on the codes of all rows above i; the horizontal stack at (i, j) also on those of row i left of j.
Kernels hold their causal taps only: a 2x3 kernel, not a masked 3x3.
"""

from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.conditioning import ClassShift, Condition
from stage2_prior.priors.dropout import Dropout


class Stacks(NamedTuple):
    """The features of the two stacks, each (n, hidden, h, w)."""

    vertical: Float[Tensor, "n c h w"]
    horizontal: Float[Tensor, "n c h w"]


class VerticalConv(nn.Conv2d):
    """A k x k window cut to its upper rows: up to the current row, or (`strict`) up to the row above."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, strict: bool) -> None:
        rows = kernel // 2 if strict else kernel // 2 + 1
        super().__init__(in_channels, out_channels, (rows, kernel))
        self.pad = (kernel // 2, kernel // 2, kernel // 2, 0)  # left, right, top, bottom

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        # The strict form would yield one row too many, for the row below the map.
        return super().forward(F.pad(features, self.pad))[:, :, : features.shape[2]]


class HorizontalConv(nn.Conv2d):
    """A 1 x k window cut to its left part: up to the current column, or (`strict`) up to the column before."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, strict: bool, bias: bool = True) -> None:
        columns = kernel // 2 if strict else kernel // 2 + 1
        super().__init__(in_channels, out_channels, (1, columns), bias=bias)
        self.pad = (kernel // 2, 0, 0, 0)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return super().forward(F.pad(features, self.pad))[:, :, :, : features.shape[3]]


def gate(activations: Float[Tensor, "n two_c h w"]) -> Float[Tensor, "n c h w"]:
    """tanh(a) * sigmoid(b), equation 2, for a and b the two halves of the channels."""
    a, b = activations.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class GatedLayer(nn.Module):
    """One gated layer of both stacks (figure 2 of the paper), with a residual connection in each.

    The first layer reads the embedded codes and is `strict`: its features at (i, j) already exclude the code at (i, j),
    so that the windows of later layers may include their own position. Classes enter both stacks (equation 4), coarser
    levels the vertical one, from which they reach the horizontal one through the link.
    """

    def __init__(self, config: PriorConfig, *, strict: bool) -> None:
        super().__init__()
        hidden, kernel = config.hidden, config.first_kernel if strict else config.kernel
        self.strict = strict
        self.vertical = VerticalConv(hidden, 2 * hidden, kernel, strict=strict)
        self.horizontal = HorizontalConv(hidden, 2 * hidden, kernel, strict=strict)
        self.link = nn.Conv2d(2 * hidden, 2 * hidden, 1)  # from the vertical to the horizontal stack
        self.residual = nn.Conv2d(hidden, hidden, 1)
        self.dropout = Dropout(config.dropout)
        self.condition = ClassShift(config.num_classes, 4 * hidden) if config.num_classes else None
        self.condition_proj = nn.Conv2d(hidden, 2 * hidden, 1, bias=False) if config.coarser else None

    def forward(self, stacks: Stacks, condition: Condition) -> Stacks:
        vertical = self.vertical(stacks.vertical)
        if self.condition_proj is not None:
            vertical = vertical + self.condition_proj(condition.features)
        horizontal = self.horizontal(stacks.horizontal) + self.link(vertical)
        if self.condition is not None:
            shift = rearrange(self.condition(condition.labels).to(vertical.dtype), "n (s c) -> s n c 1 1", s=2)
            vertical, horizontal = vertical + shift[0], horizontal + shift[1]
        change = Stacks(gate(vertical), self.residual(self.dropout(gate(horizontal))))
        if self.strict:  # no residual connection here: it would pass on the embedded code of the position itself
            return change
        return Stacks(stacks.vertical + change.vertical, stacks.horizontal + change.horizontal)
