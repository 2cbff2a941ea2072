"""The priors by name."""

from collections.abc import Mapping
from types import MappingProxyType

from stage2_prior.config import PriorConfig
from stage2_prior.pixelcnn import PixelCNN
from stage2_prior.pixelsnail import PixelSNAIL
from stage2_prior.prior import Prior

PRIORS: Mapping[str, type[Prior]] = MappingProxyType({"pixelcnn": PixelCNN, "pixelsnail": PixelSNAIL})


def make_prior(config: PriorConfig) -> Prior:
    """The prior that a configuration describes, untrained."""
    return PRIORS[config.prior](config)
