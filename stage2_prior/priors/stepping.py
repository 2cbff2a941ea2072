"""What the steppers of all priors share: the head, and weights in the form that they need."""

from collections.abc import Iterable

import torch
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


def double(tensor: Tensor | None) -> Float[Tensor, "..."]:
    """Weights in float64, in which they are folded."""
    assert tensor is not None
    return tensor.detach().double()


def doubling(weight: Float[Tensor, "d ..."]) -> Float[Tensor, "d"]:
    """The factor of each activation: 2 for the half a of a gate, 1 for the half b."""
    scale = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    scale[: len(weight) // 2] = 2
    return scale
