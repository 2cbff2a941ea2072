"""What the transformer is made of: multi-query attention over all positions so far, and a block around it.

Vaswani et al. 2017, "Attention Is All You Need", with what later networks of text are made of: normalisation before
each part (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"; not by RMSNorm, which does not
subtract the mean, because torch has no fused kernel of it for CPUs), positions as rotations of queries and keys (Su et
al. 2021, "RoFormer", equation 34; one half of the channels turns with the row, the other with the column), normalised
queries and keys (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2), and a
squared ReLU (So et al. 2021, "Primer").
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.causal_attention import causal_attention
from stage2_prior.priors.conditioning import ClassShift
from stage2_prior.priors.dropout import Dropout

EPS = 1e-6  # of layer normalisation
WIDENING = 4  # channels within a block's MLP over those outside
_LONGEST_WAVE = 100.0  # of a query of many channels the slowest rotation is a radian in this many rows or columns


class Rotations(NamedTuple):
    """Cosines and sines of the angles by which queries and keys are turned at each position."""

    cosines: Float[Tensor, "positions half"]
    sines: Float[Tensor, "positions half"]

    def turn(self, vectors: Float[Tensor, "... positions dim"]) -> Float[Tensor, "... positions dim"]:
        """Vectors turned in the planes of channels i and i + dim / 2."""
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat(
            [first * self.cosines - second * self.sines, first * self.sines + second * self.cosines], dim=-1
        )


def rotations(size: tuple[int, int], dim: int, like: Tensor) -> Rotations:
    """Those of all positions of a map of this size, for queries of `dim` channels, in raster order."""
    frequencies = _LONGEST_WAVE ** -(torch.arange(dim // 4, device=like.device, dtype=torch.float64) * 4 / dim)
    rows, columns = (torch.arange(length, device=like.device, dtype=torch.float64) for length in size)
    where = rearrange(torch.cartesian_prod(rows, columns), "positions two -> positions two 1")
    angles = (where * frequencies).flatten(1)
    return Rotations(angles.cos().to(like), angles.sin().to(like))


def make_norm(config: PriorConfig, channels: int) -> nn.LayerNorm | nn.RMSNorm:
    """Layer normalisation (Ba et al. 2016) without a bias or, in a network of format 6, RMSNorm (Zhang & Sennrich
    2019)."""
    return nn.RMSNorm(channels, EPS) if config.normalisation == "rms" else nn.LayerNorm(channels, EPS, bias=False)


def normalised(
    config: PriorConfig, features: Float[Tensor, "... c"], weight: Float[Tensor, "c"]
) -> Float[Tensor, "... c"]:
    """What the module of `make_norm` with this weight computes."""
    if config.normalisation == "rms":
        return F.rms_norm(features, weight.shape, weight, EPS)
    return F.layer_norm(features, weight.shape, weight, None, EPS)


class RotaryAttention(nn.Module):
    """Each position attends to itself and all earlier ones. All heads share one set of keys and values."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.heads, self.dim = config.heads, hidden // config.heads
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.kv_proj = nn.Linear(hidden, 2 * self.dim, bias=False)
        self.q_norm, self.k_norm = make_norm(config, self.dim), make_norm(config, self.dim)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.out_proj.weight)  # a block begins as the identity

    def forward(self, features: Float[Tensor, "n positions c"], turned: Rotations) -> Float[Tensor, "n positions c"]:
        queries = rearrange(self.q_proj(features), "n p (heads dim) -> n heads p dim", heads=self.heads)
        keys, values = rearrange(self.kv_proj(features), "n p c -> n 1 p c").chunk(2, dim=3)
        # In float32, as their weights are: of bfloat16 torch would warn, and take its slow path.
        queries, keys = (norm(x.to(norm.weight)) for norm, x in ((self.q_norm, queries), (self.k_norm, keys)))
        queries, keys = turned.turn(queries), turned.turn(keys)
        attended = causal_attention(queries, keys.to(values.dtype), values)
        result: Tensor = self.out_proj(rearrange(attended, "n heads p dim -> n p (heads dim)"))
        return result


class TransformerBlock(nn.Module):
    """Attention and a multilayer perceptron, each added to the features. Classes and coarser levels shift the inputs
    of both."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.attention_norm, self.mlp_norm = make_norm(config, hidden), make_norm(config, hidden)
        self.attention = RotaryAttention(config)
        self.up_proj = nn.Linear(hidden, WIDENING * hidden, bias=False)
        self.down_proj = nn.Linear(WIDENING * hidden, hidden, bias=False)
        nn.init.zeros_(self.down_proj.weight)
        self.dropout = Dropout(config.dropout)
        self.shift = ClassShift(config.num_classes, 2 * hidden) if config.num_classes else None
        self.condition_proj = nn.Linear(hidden, 2 * hidden, bias=False) if config.coarser else None

    def forward(
        self,
        features: Float[Tensor, "n positions c"],
        turned: Rotations,
        labels: Int[Tensor, "n"] | None,
        coarser: Float[Tensor, "n positions c"] | None,
    ) -> Float[Tensor, "n positions c"]:
        shift = features.new_zeros(1, 1, 2 * features.shape[2])
        if self.shift is not None and labels is not None:
            shift = shift + rearrange(self.shift(labels), "n c -> n 1 c")
        if self.condition_proj is not None:
            shift = shift + self.condition_proj(coarser)
        of_attention, of_mlp = shift.chunk(2, dim=2)
        attended = self.attention(self.attention_norm(features) + of_attention, turned)
        features = features + self.dropout(attended)
        inner = F.relu(self.up_proj(self.mlp_norm(features) + of_mlp)).square()
        result: Tensor = features + self.dropout(self.down_proj(inner))
        return result
