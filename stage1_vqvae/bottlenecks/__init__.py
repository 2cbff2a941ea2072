"""Bottlenecks between encoder and decoder: one file per bottleneck, one interface (base.py)."""

from collections.abc import Callable

from stage1_vqvae.bottlenecks.base import (
    Bottleneck,
    BottleneckOutput,
    ContinuousBottleneck,
    DiscreteBottleneck,
    Reset,
    Statistics,
)
from stage1_vqvae.bottlenecks.finite_scalar import FiniteScalarQuantizer
from stage1_vqvae.bottlenecks.gaussian import GaussianBottleneck
from stage1_vqvae.bottlenecks.gumbel import GumbelQuantizer
from stage1_vqvae.bottlenecks.identity import IdentityBottleneck
from stage1_vqvae.bottlenecks.mmd import MMDBottleneck
from stage1_vqvae.bottlenecks.vector_quantizer import VectorQuantizer
from stage1_vqvae.config import VQVAEConfig

BOTTLENECKS: dict[str, Callable[[VQVAEConfig], Bottleneck]] = {
    "vq": VectorQuantizer,
    "gumbel": GumbelQuantizer,
    "fsq": FiniteScalarQuantizer,
    "gaussian": GaussianBottleneck,
    "mmd": MMDBottleneck,
    "none": IdentityBottleneck,
}

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckOutput",
    "ContinuousBottleneck",
    "DiscreteBottleneck",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "GumbelQuantizer",
    "IdentityBottleneck",
    "MMDBottleneck",
    "Reset",
    "Statistics",
    "VectorQuantizer",
]
