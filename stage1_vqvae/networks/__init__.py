"""The networks on both sides of the codes; a new one is a module and a line in NETWORKS."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from stage1_vqvae.config import VQVAEConfig
from stage1_vqvae.networks import residual, strided


class Network(NamedTuple):
    """What makes each part of a network.

    `encoder`: normalised images (n, channels, height, width) to features (n, hidden, code_height, code_width);
    `decoder`: code vectors, of so many channels, to normalised images; `down` and `up`: features (n, hidden, h, w) to
    (n, hidden, h/2, w/2) and to (n, hidden, 2h, 2w), between the grids of hierarchical levels.
    """

    encoder: Callable[[VQVAEConfig], nn.Sequential]
    decoder: Callable[[VQVAEConfig, int], nn.Sequential]
    down: Callable[[VQVAEConfig], nn.Module]
    up: Callable[[VQVAEConfig], nn.Module]


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "strided": Network(strided.Encoder, strided.Decoder, strided.down, strided.up),
        "residual": Network(residual.Encoder, residual.Decoder, residual.down, residual.up),
    }
)

__all__ = ["NETWORKS", "Network"]
