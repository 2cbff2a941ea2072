"""PixelSNAIL over one level of codes."""

from jaxtyping import Float
from torch import Tensor

from stage2_prior.config import PriorConfig
from stage2_prior.priors.base import Prior, head
from stage2_prior.priors.conditioning import Condition
from stage2_prior.priors.pixelsnail.layers import Trunk
from stage2_prior.priors.pixelsnail.stepper import PixelSNAILStepper


class PixelSNAIL(Prior):
    """PixelSNAIL (Chen et al. 2017) with embedded codes, classes and coarser levels. Its reach is unlimited."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config)
        self.head = head(config)

    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """Features of the trunk."""
        features: Tensor = self.trunk(embedded, condition)
        return features

    def stepper(self, n: int) -> PixelSNAILStepper:
        """Logits one position at a time, for n maps of the configured size."""
        return PixelSNAILStepper(self, self.trunk, n)
