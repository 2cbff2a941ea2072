"""What stands between encoder and decoder. One file a bottleneck, one interface (base.py)."""

from stage1_vqvae.bottlenecks.base import Bottleneck, BottleneckOutput, Reset, Statistics
from stage1_vqvae.bottlenecks.finite_scalar import FiniteScalarQuantizer
from stage1_vqvae.bottlenecks.gumbel import GumbelQuantizer
from stage1_vqvae.bottlenecks.vector_quantizer import VectorQuantizer

BOTTLENECKS: dict[str, type[VectorQuantizer] | type[GumbelQuantizer] | type[FiniteScalarQuantizer]] = {
    "vq": VectorQuantizer,
    "gumbel": GumbelQuantizer,
    "fsq": FiniteScalarQuantizer,
}

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckOutput",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "Reset",
    "Statistics",
    "VectorQuantizer",
]
