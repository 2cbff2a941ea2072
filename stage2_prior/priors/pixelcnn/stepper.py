"""The gated PixelCNN one position at a time: nothing is computed twice.

The vertical stack depends on finished rows only, so a row of it is one matrix product per layer and row of the window;
the horizontal stack follows one position at a time. Rows of features are (width, n, channels) in the vertical stack, so
that one product serves all positions and images, and (n, width, channels) in the horizontal one, where a causal window
is a view.

Weights are folded once. tanh(a) is 2 sigmoid(2a) - 1, so that one sigmoid serves both halves of a gate (on CPUs tanh
costs several times as much): activations are kept with their half a doubled. A class only shifts activations, and
shifts are added to the biases before the first row.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.priors.base import Prior
from stage2_prior.priors.pixelcnn.layers import GatedLayer
from stage2_prior.priors.stepping import Buffers, Head, double, doubling


class PixelCNNStepper(Buffers):
    """The Stepper of a gated PixelCNN for n maps: folded weights and buffers, made once for any number of batches.

    Logits equal those of `forward` up to rounding. The buffers grow with the width of a map, not with its height.
    """

    def __init__(self, prior: Prior, layers: nn.ModuleList, n: int) -> None:
        config = prior.config
        self.prior, self.size = prior, (config.height, config.width)
        self.embedding = prior.embedding.weight.detach()
        self.codes = torch.zeros(config.width, n, dtype=torch.int64, device=self.embedding.device)  # of the current row
        self.layers: list[_Layer] = []
        folded_bias = torch.zeros_like(self.embedding[0], dtype=torch.float64)
        for layer in layers:
            assert isinstance(layer, GatedLayer)
            self.layers.append(_Layer(layer, n, config.width, folded_bias))
            folded_bias = folded_bias + double(layer.residual.bias)
        self.head = Head(prior.head, n, folded_bias)
        shape = (config.height, config.width, n, config.hidden)
        self.conditioning = self.embedding.new_zeros(shape) if config.coarser else None

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start n maps of these classes, conditioned on these coarser levels."""
        condition = self.prior.condition(labels, coarser, self.size)
        for layer in self.layers:
            layer.condition(condition.labels)
        if self.conditioning is not None and condition.features is not None:
            self.conditioning.copy_(rearrange(condition.features, "n c h w -> h w n c"))

    def begin_row(self, row: int) -> None:
        """Compute a row of the vertical stack, and its link to the horizontal stack."""
        first = self.layers[0].vertical
        if row == 0:
            for layer in self.layers:
                layer.vertical.clear()
        else:
            first.row.copy_(F.embedding(self.codes, self.embedding))
            first.advance()
        conditioning = None if self.conditioning is None else self.conditioning[row].flatten(0, 1)
        for layer, following in pairwise(self.layers):
            layer.horizontal.link(layer.vertical.activate(conditioning))
            layer.vertical.features(out=following.vertical.row)
            following.vertical.advance()
        last = self.layers[-1]
        last.horizontal.link(last.vertical.activate(conditioning))

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """Run the horizontal stack at one position. The next call overwrites the result."""
        for layer, following in pairwise(self.layers):
            layer.horizontal.step(column, out=following.horizontal.columns[column])
        self.layers[-1].horizontal.step(column, out=self.head.features)
        return self.head.logits()

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Embed the codes of a position."""
        self.codes[column] = codes
        self.layers[0].horizontal.columns[column].copy_(F.embedding(codes, self.embedding))

    def memory(self) -> int:
        """Bytes of the folded weights and buffers."""
        parts = [part for layer in self.layers for part in (layer.vertical, layer.horizontal)]
        return super().memory() + sum(part.memory() for part in (self.head, *parts))


class _Layer:
    """Both stacks of a GatedLayer."""

    def __init__(self, layer: GatedLayer, n: int, width: int, folded_bias: Float[Tensor, "c"]) -> None:
        self.shift = layer.condition
        self.vertical = _Vertical(layer, n, width)
        self.horizontal = _Horizontal(layer, n, width, folded_bias)

    def condition(self, labels: Int[Tensor, "n"] | None) -> None:
        """Shift the activations of each image by the shift of its class."""
        if self.shift is None or labels is None:
            shifts = self.vertical.start.new_zeros(2, 1, self.vertical.start.shape[1])
        else:
            shifts = rearrange(double(self.shift(labels)), "n (s c) -> s n c", s=2)
        self.vertical.condition(shifts[0])
        self.horizontal.condition(shifts[0], shifts[1])


class _Vertical(Buffers):
    """The vertical stack of one layer."""

    def __init__(self, layer: GatedLayer, n: int, width: int) -> None:
        weight = double(layer.vertical.weight)
        self.strict, self.scale = layer.strict, doubling(weight)
        self.bias = double(layer.vertical.bias)
        like, channels, kernel = layer.vertical.weight, weight.shape[1], weight.shape[3]
        # One matrix for each row of the window, the farthest first.
        self.weights = [(rearrange(w, "d c k -> (k c) d") * self.scale).to(like) for w in weight.unbind(2)]
        padded = like.new_zeros(width + kernel - 1, n, channels)
        self.row = padded[kernel // 2 : kernel // 2 + width]  # the input of the layer
        self.windows_of_row = rearrange(padded.unfold(0, kernel, 1), "w n c k -> w n k c")
        self.windows = deque(like.new_zeros(width, n, kernel, channels) for _ in self.weights)
        self.condition_proj = (
            None
            if layer.condition_proj is None
            else (self.scale * double(layer.condition_proj.weight)[:, :, 0, 0].T).to(like)
        )
        self.start = like.new_zeros(n, len(weight))
        self.activations = like.new_empty(width, n, len(weight))

    def condition(self, shift: Float[Tensor, "_ d"]) -> None:
        """Add the shift to the bias."""
        self.start.copy_(self.scale * (self.bias + shift))

    def clear(self) -> None:
        """Start at the first row: there are zeros above it."""
        for windows in self.windows:
            windows.zero_()

    def advance(self) -> None:
        """Replace the windows of the farthest row by those of `row`, which is complete."""
        self.windows.rotate(-1)
        self.windows[-1].copy_(self.windows_of_row)

    def activate(self, conditioning: Float[Tensor, "wn c"] | None) -> Float[Tensor, "w n d"]:
        """The activations before the gate at every position of the row: the convolution and the conditioning."""
        flat = self.activations.copy_(self.start).flatten(0, 1)
        for windows, weight in zip(self.windows, self.weights, strict=True):
            flat.addmm_(windows.view(len(flat), -1), weight)
        if self.condition_proj is not None and conditioning is not None:
            flat.addmm_(conditioning, self.condition_proj)
        return self.activations

    def features(self, out: Float[Tensor, "w n c"]) -> None:
        """The input of the next layer: gated activations, plus the input of this layer."""
        a, b = self.activations.sigmoid_().chunk(2, dim=2)
        if self.strict:
            torch.mul(a, b, out=out).mul_(2)
        else:
            torch.addcmul(self.row, a, b, value=2, out=out)
        out.sub_(b)


class _Horizontal(Buffers):
    """The horizontal stack of one layer.

    The biases of the residual convolutions add up along the layers to a constant, `folded_bias`. It is left out of the
    features and folded into the biases of the layers that read them; so beyond the border, features are minus that
    constant, not 0.
    """

    def __init__(self, layer: GatedLayer, n: int, width: int, folded_bias: Float[Tensor, "c"]) -> None:
        like, link = layer.horizontal.weight, double(layer.link.weight)[:, :, 0, 0]
        weight = rearrange(double(layer.horizontal.weight), "d c 1 k -> (k c) d")
        taps, channels = layer.horizontal.kernel_size[1], len(folded_bias)
        self.strict, self.scale, self.link_of_shift = layer.strict, doubling(link), link.T
        self.bias = double(layer.horizontal.bias) + double(layer.link.bias) + folded_bias.repeat(taps) @ weight
        self.weight = (weight * self.scale).to(like)
        self.link_weight = (link.T / self.scale[:, None] * self.scale).to(like)
        self.residual = (-double(layer.residual.weight)[:, :, 0, 0].T).contiguous().to(like)
        beyond = layer.horizontal.pad[0]
        padded = (-folded_bias).to(like).expand(n, width + beyond, channels).clone()
        self.columns = padded[:, beyond:].unbind(1)  # the input of the layer, by column
        self.windows = [padded[:, column : column + taps].flatten(1) for column in range(width)]
        self.start = like.new_zeros(n, len(link))
        self.linked = like.new_empty(width, n, len(link))
        self.linked_columns = self.linked.unbind(0)
        self.activations, self.gated = like.new_empty(n, len(link)), like.new_empty(n, channels)
        self.a, self.b = self.activations.chunk(2, dim=1)

    def condition(self, vertical_shift: Float[Tensor, "_ d"], shift: Float[Tensor, "_ d"]) -> None:
        """Add the shift to the bias, less what the shift of the vertical stack contributes through the link."""
        self.start.copy_(self.scale * (self.bias + shift - vertical_shift.double() @ self.link_of_shift))

    def link(self, vertical: Float[Tensor, "w n d"]) -> None:
        """Add the vertical stack to the start of every position of the row."""
        self.linked.copy_(self.start).flatten(0, 1).addmm_(vertical.flatten(0, 1), self.link_weight)

    def step(self, column: int, out: Float[Tensor, "n c"]) -> None:
        """Compute one position: the input of the next layer there."""
        torch.addmm(self.linked_columns[column], self.windows[column], self.weight, out=self.activations)
        self.activations.sigmoid_()
        torch.addcmul(self.b, self.a, self.b, value=-2, out=self.gated)  # minus the gate; `residual` is minus too
        if self.strict:
            torch.mm(self.gated, self.residual, out=out)
        else:
            torch.addmm(self.columns[column], self.gated, self.residual, out=out)
