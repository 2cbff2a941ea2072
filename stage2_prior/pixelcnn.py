"""The gated PixelCNN over one level of codes."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from stage2_prior.config import PriorConfig
from stage2_prior.layers import GatedLayer, Stacks
from stage2_prior.pixelcnn_stepper import PixelCNNStepper
from stage2_prior.prior import Prior, head


class PixelCNN(Prior):
    """Gated PixelCNN (van den Oord et al. 2016) with embedded codes, both stacks, classes and coarser levels."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(GatedLayer(config, strict=index == 0) for index in range(config.layers))
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
        embedded = self.embed(codes)
        stacks = Stacks(embedded, embedded)
        for layer in self.layers:
            stacks = layer(stacks, condition)
        logits: Tensor = self.head(stacks.horizontal)
        return logits

    def stepper(self, n: int) -> PixelCNNStepper:
        """Logits position by position, for n maps of the configured size."""
        return PixelCNNStepper(self, self.layers, self.head, n)
