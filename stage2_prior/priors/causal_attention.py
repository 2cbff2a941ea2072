"""Attention of each position to those up to its own, as every prior with attention computes it in training."""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def causal_attention(
    queries: Float[Tensor, "n heads positions dim"],
    keys: Float[Tensor, "n 1 positions dim"],
    values: Float[Tensor, "n 1 positions dim"],
) -> Float[Tensor, "n heads positions dim"]:
    """A softmax over the keys of the position itself and of earlier ones, shared by all heads (multi-query attention;
    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need")."""
    kind, heads = values.device.type, queries.shape[1]
    # The backward pass of attention in bfloat16 is three times as slow on CPUs.
    if kind == "cpu" and values.dtype == torch.bfloat16:
        keys, values = keys.float(), values.float()
    keys, values = keys.expand(-1, heads, -1, -1), values.expand(-1, heads, -1, -1)
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):  # meta has no autocast
        return F.scaled_dot_product_attention(queries.to(values.dtype), keys, values, is_causal=True)
