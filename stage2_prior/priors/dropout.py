"""Dropout whose random numbers cost a CPU little."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 256  # values of a byte
_PER_DRAW = 8  # bytes of a 64-bit integer


class Dropout(nn.Module):
    """As nn.Dropout (Srivastava et al. 2014), whose masks are a tenth of a transformer's training step on a CPU. There
    one random byte decides for each value, and one 64-bit random number gives eight bytes.

    So on a CPU the rate is a multiple of 1/256, the nearest one.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Some features set to 0, in training, and all others scaled so that their mean stays."""
        if not self.training or features.device.type not in ("cpu", "meta"):
            return F.dropout(features, self.rate, self.training)
        dropped = min(_LEVELS - 1, round(self.rate * _LEVELS))
        if dropped == 0:
            return features
        return torch.where(_bytes_like(features) >= dropped, features * (_LEVELS / (_LEVELS - dropped)), 0)


def _bytes_like(features: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Random bytes, which lie in memory as the features do."""
    draws = torch.empty(-(-features.numel() // _PER_DRAW), dtype=torch.int64, device=features.device)
    draws.random_(-(2**63), None)
    strides = torch.empty_like(features, device="meta").stride()
    return draws.view(torch.uint8).as_strided(features.shape, strides)
