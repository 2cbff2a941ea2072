"""What steppers of several priors share: the head, causal convolutions, and weights in the form that they need."""

from collections import deque
from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Buffers:
    """A part of a stepper, whose folded weights and buffers are its attributes."""

    def memory(self) -> int:
        """Bytes of the tensors among the attributes and in their sequences; views of one storage count once."""
        found: dict[int, int] = {}
        for value in vars(self).values():
            for item in value if isinstance(value, Iterable) and not isinstance(value, Tensor) else (value,):
                if isinstance(item, Tensor):
                    storage = item.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())


class Head(Buffers):
    """The two 1x1 convolutions from features to logits, for features that lack a constant, `folded_bias`."""

    def __init__(self, head: nn.Sequential, n: int, folded_bias: Float[Tensor, "c"]) -> None:
        first, second = head[1], head[3]
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        like, weight = first.weight, double(first.weight)[:, :, 0, 0]
        self.floor = (-folded_bias).to(like)  # relu(features + bias) is max(features, -bias) + bias
        self.first_bias = (double(first.bias) + weight @ folded_bias).to(like)
        self.first, self.second = weight.T.contiguous().to(like), second.weight.detach()[:, :, 0, 0].T.contiguous()
        self.second_bias = double(second.bias).to(like)
        self.features = like.new_empty(n, len(folded_bias))
        self.hidden, self.out = like.new_empty(n, len(weight)), like.new_empty(n, len(second.weight))

    def logits(self) -> Float[Tensor, "n k"]:
        """Logits of `features`, which are overwritten."""
        torch.maximum(self.features, self.floor, out=self.features)
        torch.addmm(self.first_bias, self.features, self.first, out=self.hidden).relu_()
        return torch.addmm(self.second_bias, self.hidden, self.second, out=self.out)


class ConvStepper(Buffers):
    """A causal convolution: `columns` are its input, by column."""

    def __init__(
        self,
        above: Float[Tensor, "outputs inputs rows columns"],
        left: Float[Tensor, "outputs inputs 1 own"],
        bias: Tensor | None,
        n: int,
        width: int,
    ) -> None:
        """`above`: the weights of the rows above. `left`: those of the position's own row, starting at the first
        column of the window."""
        # One matrix for each row above, the farthest first.
        self.above = [rearrange(row, "d c k -> (k c) d").contiguous() for row in above.detach().unbind(2)]
        self.left = rearrange(left.detach(), "d c 1 k -> (k c) d").contiguous()
        assert bias is not None
        self.bias = bias.detach()
        (outputs, inputs, reach, taps), own = above.shape, left.shape[3]
        padded = above.new_zeros(n, reach + width + taps - 1 - reach, inputs)
        self.columns = padded[:, reach : reach + width].unbind(1)
        self.windows = [padded[:, column : column + own].flatten(1) for column in range(width)]
        self.row = rearrange(padded.unfold(1, taps, 1), "n w c k -> w n k c")
        self.rows = deque(above.new_zeros(width, n, taps, inputs) for _ in self.above)
        self.from_above = above.new_zeros(width, n, outputs)
        self.from_above_columns = self.from_above.unbind(0)

    def begin_row(self, row: int, start: Float[Tensor, "..."]) -> None:
        """Add up `start`, the bias and the rows above, at every position of the row."""
        if row == 0:
            for windows in self.rows:
                windows.zero_()
        else:  # the row before is complete: its windows replace those of the farthest row
            self.rows.rotate(-1)
            self.rows[-1].copy_(self.row)
        flat = self.from_above.copy_(start + self.bias).flatten(0, 1)
        for windows, weight in zip(self.rows, self.above, strict=True):
            flat.addmm_(windows.view(len(flat), -1), weight)

    def step(self, column: int, out: Float[Tensor, "n d"]) -> None:
        """Add the position's own row: the output at one position."""
        torch.addmm(self.from_above_columns[column], self.windows[column], self.left, out=out)


def double(tensor: Tensor | None) -> Float[Tensor, "..."]:
    """Weights in float64, in which they are folded."""
    assert tensor is not None
    return tensor.detach().double()


def doubling(weight: Float[Tensor, "d ..."]) -> Float[Tensor, "d"]:
    """The factor of each activation: 2 for the half a of a gate, 1 for the half b."""
    scale = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    scale[: len(weight) // 2] = 2
    return scale
