"""The priors by name."""

from collections.abc import Mapping
from types import MappingProxyType

from stage2_prior.config import PriorConfig
from stage2_prior.priors.base import Prior
from stage2_prior.priors.pixelcnn.network import PixelCNN
from stage2_prior.priors.pixelsnail.network import PixelSNAIL
from stage2_prior.priors.transformer.network import Transformer

PRIORS: Mapping[str, type[Prior]] = MappingProxyType(
    {"pixelcnn": PixelCNN, "pixelsnail": PixelSNAIL, "transformer": Transformer}
)


def make_prior(config: PriorConfig) -> Prior:
    """The prior that a configuration describes, untrained."""
    return PRIORS[config.prior](config)
