"""PixelSNAIL over one level of codes."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

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

    def forward(
        self,
        codes: Int[Tensor, "n h w"],
        labels: Int[Tensor, "n"] | None,
        coarser: Sequence[Int[Tensor, "n _ _"]] = (),
    ) -> Float[Tensor, "n k h w"]:
        """Logits (n, num_codes, h, w) under teacher forcing; see Prior.forward."""
        _, height, width = codes.shape
        condition = self.condition(labels, coarser, (height, width))
        logits: Tensor = self.head(self.trunk(self.embed(codes), condition))
        return logits

    def stepper(self, n: int) -> PixelSNAILStepper:
        """Logits position by position, for n maps of the configured size."""
        return PixelSNAILStepper(self, self.trunk, self.head, n)
