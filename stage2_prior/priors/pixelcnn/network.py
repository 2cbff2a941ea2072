"""The gated PixelCNN over one level of codes."""

from jaxtyping import Float
from torch import Tensor, nn

from stage2_prior.config import PriorConfig
from stage2_prior.priors.base import Prior, head
from stage2_prior.priors.conditioning import Condition
from stage2_prior.priors.pixelcnn.layers import GatedLayer, Stacks
from stage2_prior.priors.pixelcnn.stepper import PixelCNNStepper


class PixelCNN(Prior):
    """Gated PixelCNN (van den Oord et al. 2016) with embedded codes, both stacks, classes and coarser levels."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(GatedLayer(config, strict=index == 0) for index in range(config.layers))
        self.head = head(config)

    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """Features of the horizontal stack after all layers."""
        stacks = Stacks(embedded, embedded)
        for layer in self.layers:
            stacks = layer(stacks, condition)
        return stacks.horizontal

    def stepper(self, n: int) -> PixelCNNStepper:
        """Logits one position at a time, for n maps of the configured size."""
        return PixelCNNStepper(self, self.layers, n)
