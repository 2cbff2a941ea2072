"""What stands between encoder and decoder. One file a bottleneck, one interface (base.py)."""

from stage1_vqvae.bottlenecks.base import Bottleneck, BottleneckOutput, Reset, Statistics
from stage1_vqvae.bottlenecks.vector_quantizer import VectorQuantizer

__all__ = ["Bottleneck", "BottleneckOutput", "Reset", "Statistics", "VectorQuantizer"]
