"""PixelSNAIL over one level of codes."""

from jaxtyping import Float
from torch import Tensor

from stage2_prior.conditioning import Condition
from stage2_prior.config import PriorConfig
from stage2_prior.pixelsnail_stepper import PixelSNAILStepper
from stage2_prior.prior import Prior, head
from stage2_prior.snail_layers import Trunk


class PixelSNAIL(Prior):
    """PixelSNAIL (Chen et al. 2017) with embedded codes, classes and coarser levels; logits see all earlier codes."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config)
        self.head = head(config)

    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """Those of the trunk."""
        features: Tensor = self.trunk(embedded, condition)
        return features

    def stepper(self, n: int) -> PixelSNAILStepper:
        """Logits position by position, for n maps of the configured size."""
        return PixelSNAILStepper(self, self.trunk, n)
