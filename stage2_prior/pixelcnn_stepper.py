"""The gated PixelCNN a position at a time: nothing is computed twice.

The vertical stack knows only finished rows, so a row of it is one matrix product a layer and row of the window; the
horizontal stack follows a position at a time. Rows of features are (width, n, channels) in the vertical stack, so that
one product serves all positions and images, and (n, width, channels) in the horizontal one, where a causal window is a
view.

Weights are folded once. tanh(a) is 2 sigmoid(2a) - 1, so that one sigmoid serves both halves of a gate (on CPUs tanh
costs several times as much): activations are kept with their half a doubled. A class only shifts activations, and
shifts are summed before the first row.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.layers import GatedLayer
from stage2_prior.prior import Prior
from stage2_prior.stepping import Head, bytes_of, double, doubling


class PixelCNNStepper:
    """The Stepper of a gated PixelCNN for n images: a plan and its buffers, made once for any number of batches.

    Logits are those of `forward` but for rounding. The buffers grow with the width of a map, not with its height.
    """

    def __init__(self, prior: Prior, layers: nn.ModuleList, n: int) -> None:
        config = prior.config
        self.prior, self.size = prior, (config.height, config.width)
        self.embedding = prior.embedding.weight.detach()
        self.codes = torch.zeros(config.width, n, dtype=torch.int64, device=self.embedding.device)  # of the current row
        self.layers: list[_Layer] = []
        carried = torch.zeros_like(self.embedding[0], dtype=torch.float64)
        for layer in layers:
            assert isinstance(layer, GatedLayer)
            self.layers.append(_Layer(layer, n, config.width, carried))
            carried = carried + double(layer.residual.bias)
        self.head = Head(prior.head, n, carried)
        shape = (config.height, config.width, n, config.hidden)
        self.looked_at = self.embedding.new_zeros(shape) if config.coarser else None

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start n maps of these classes, beneath these coarser levels."""
        condition = self.prior.condition(labels, coarser, self.size)
        for layer in self.layers:
            layer.condition(condition.labels)
        if self.looked_at is not None and condition.features is not None:
            self.looked_at.copy_(rearrange(condition.features, "n c h w -> h w n c"))

    def begin_row(self, row: int) -> None:
        """A row of the vertical stack, and what the horizontal stack takes from it."""
        first = self.layers[0].vertical
        if row == 0:
            for layer in self.layers:
                layer.vertical.clear()
        else:
            first.row.copy_(F.embedding(self.codes, self.embedding))
            first.advance()
        seen = None if self.looked_at is None else self.looked_at[row].flatten(0, 1)
        for layer, following in pairwise(self.layers):
            layer.horizontal.link(layer.vertical.activate(seen))
            layer.vertical.features(out=following.vertical.row)
            following.vertical.advance()
        last = self.layers[-1]
        last.horizontal.link(last.vertical.activate(seen))

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """The horizontal stack at one position. The next call overwrites the result."""
        for layer, following in pairwise(self.layers):
            layer.horizontal.step(column, out=following.horizontal.places[column])
        self.layers[-1].horizontal.step(column, out=self.head.features)
        return self.head.logits()

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Embed the codes of a position."""
        self.codes[column] = codes
        self.layers[0].horizontal.places[column].copy_(F.embedding(codes, self.embedding))

    def memory(self) -> int:
        """Bytes of plan and buffers."""
        parts = [part for layer in self.layers for part in (layer.vertical, layer.horizontal)]
        return sum(bytes_of(part) for part in (self, self.head, *parts))


class _Layer:
    """Both stacks of a GatedLayer."""

    def __init__(self, layer: GatedLayer, n: int, width: int, carried: Float[Tensor, "c"]) -> None:
        self.shift = layer.condition
        self.vertical = _Vertical(layer, n, width)
        self.horizontal = _Horizontal(layer, n, width, carried)

    def condition(self, labels: Int[Tensor, "n"] | None) -> None:
        """Shift the activations of each image by what its class asks for."""
        if self.shift is None or labels is None:
            shifts = self.vertical.start.new_zeros(2, 1, self.vertical.start.shape[1])
        else:
            shifts = rearrange(double(self.shift(labels)), "n (s c) -> s n c", s=2)
        self.vertical.condition(shifts[0])
        self.horizontal.condition(shifts[0], shifts[1])


class _Vertical:
    """The vertical stack of one layer."""

    def __init__(self, layer: GatedLayer, n: int, width: int) -> None:
        weight = double(layer.vertical.weight)
        self.strict, self.scale = layer.strict, doubling(weight)
        self.bias = double(layer.vertical.bias)
        like, channels, kernel = layer.vertical.weight, weight.shape[1], weight.shape[3]
        # One matrix for each row of the window, the farthest first.
        self.weights = [(rearrange(w, "d c k -> (k c) d") * self.scale).to(like) for w in weight.unbind(2)]
        padded = like.new_zeros(width + kernel - 1, n, channels)
        self.row = padded[kernel // 2 : kernel // 2 + width]  # what the layer reads
        self.windows_of_row = rearrange(padded.unfold(0, kernel, 1), "w n c k -> w n k c")
        self.windows = deque(like.new_zeros(width, n, kernel, channels) for _ in self.weights)
        self.look = None if layer.look is None else (self.scale * double(layer.look.weight)[:, :, 0, 0].T).to(like)
        self.start = like.new_zeros(n, len(weight))
        self.activations = like.new_empty(width, n, len(weight))

    def condition(self, shift: Float[Tensor, "_ d"]) -> None:
        """Add the shift to the bias."""
        self.start.copy_(self.scale * (self.bias + shift))

    def clear(self) -> None:
        """Above the first row there is nothing."""
        for windows in self.windows:
            windows.zero_()

    def advance(self) -> None:
        """`row` is complete: its windows take the place of the farthest row's."""
        self.windows.rotate(-1)
        self.windows[-1].copy_(self.windows_of_row)

    def activate(self, looked_at: Float[Tensor, "wn c"] | None) -> Float[Tensor, "w n d"]:
        """The convolution at every position of the row, before its gate, and what coarser levels add to it."""
        flat = self.activations.copy_(self.start).flatten(0, 1)
        for windows, weight in zip(self.windows, self.weights, strict=True):
            flat.addmm_(windows.view(len(flat), -1), weight)
        if self.look is not None and looked_at is not None:
            flat.addmm_(looked_at, self.look)
        return self.activations

    def features(self, out: Float[Tensor, "w n c"]) -> None:
        """What the next layer reads: gated activations, plus what this layer read."""
        a, b = self.activations.sigmoid_().chunk(2, dim=2)
        if self.strict:
            torch.mul(a, b, out=out).mul_(2)
        else:
            torch.addcmul(self.row, a, b, value=2, out=out)
        out.sub_(b)


class _Horizontal:
    """The horizontal stack of one layer.

    The biases of the residual convolutions add up along the layers to a constant, `carried`. It stays out of the
    features and is accounted for where they are read; beyond the border, features are minus that constant, not 0.
    """

    def __init__(self, layer: GatedLayer, n: int, width: int, carried: Float[Tensor, "c"]) -> None:
        like, link = layer.horizontal.weight, double(layer.link.weight)[:, :, 0, 0]
        weight = rearrange(double(layer.horizontal.weight), "d c 1 k -> (k c) d")
        taps, channels = layer.horizontal.kernel_size[1], len(carried)
        self.strict, self.scale, self.link_of_shift = layer.strict, doubling(link), link.T
        self.bias = double(layer.horizontal.bias) + double(layer.link.bias) + carried.repeat(taps) @ weight
        self.weight = (weight * self.scale).to(like)
        self.link_weight = (link.T / self.scale[:, None] * self.scale).to(like)
        self.residual = (-double(layer.residual.weight)[:, :, 0, 0].T).contiguous().to(like)
        beyond = layer.horizontal.pad[0]
        padded = (-carried).to(like).expand(n, width + beyond, channels).clone()
        self.places = padded[:, beyond:].unbind(1)  # what the layer reads, by column
        self.windows = [padded[:, column : column + taps].flatten(1) for column in range(width)]
        self.start = like.new_zeros(n, len(link))
        self.linked = like.new_empty(width, n, len(link))
        self.of_columns = self.linked.unbind(0)
        self.activations, self.gated = like.new_empty(n, len(link)), like.new_empty(n, channels)
        self.a, self.b = self.activations.chunk(2, dim=1)

    def condition(self, vertical_shift: Float[Tensor, "_ d"], shift: Float[Tensor, "_ d"]) -> None:
        """Add the shift to the bias, less what comes through the link with the shift of the vertical stack."""
        self.start.copy_(self.scale * (self.bias + shift - vertical_shift.double() @ self.link_of_shift))

    def link(self, vertical: Float[Tensor, "w n d"]) -> None:
        """What the vertical stack gives to each position of the row."""
        self.linked.copy_(self.start).flatten(0, 1).addmm_(vertical.flatten(0, 1), self.link_weight)

    def step(self, column: int, out: Float[Tensor, "n c"]) -> None:
        """One position: what the next layer reads there."""
        torch.addmm(self.of_columns[column], self.windows[column], self.weight, out=self.activations)
        self.activations.sigmoid_()
        torch.addcmul(self.b, self.a, self.b, value=-2, out=self.gated)  # minus the gate; `residual` is minus too
        if self.strict:
            torch.mm(self.gated, self.residual, out=out)
        else:
            torch.addmm(self.places[column], self.gated, self.residual, out=out)
