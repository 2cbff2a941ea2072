"""A transformer over one level of codes."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_prior.config import PriorConfig
from stage2_prior.priors.base import Prior, head
from stage2_prior.priors.conditioning import Condition
from stage2_prior.priors.pixelsnail.layers import FirstConv
from stage2_prior.priors.transformer.layers import TransformerBlock, make_norm, rotations
from stage2_prior.priors.transformer.stepper import TransformerStepper


class Transformer(Prior):
    """A decoder-only transformer in raster order. Its reach is unlimited.

    A position begins with the code before it, as in a model of text, and with a strict causal window of codes above
    and to the left, so that neighbours need not be found by attention first.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.first = FirstConv(config.hidden, config.hidden, config.first_kernel)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm = make_norm(config, config.hidden)
        self.head = head(config)

    def features(self, embedded: Float[Tensor, "n c h w"], condition: Condition) -> Float[Tensor, "n c h w"]:
        """Normalised features of the last block."""
        height, width = embedded.shape[2:]
        raster = "n c h w -> n (h w) c"
        before = F.pad(rearrange(embedded, raster)[:, :-1], (0, 0, 1, 0))  # at position 0 there is none
        features = rearrange(self.first(embedded), raster) + before
        coarser = None if condition.features is None else rearrange(condition.features, raster)
        turned = rotations((height, width), self.config.hidden // self.config.heads, self.embedding.weight)
        for block in self.blocks:
            features = block(features, turned, condition.labels, coarser)
        return rearrange(self.norm(features), "n (h w) c -> n c h w", h=height)

    def stepper(self, n: int) -> TransformerStepper:
        """Logits one position at a time, for n maps of the configured size."""
        blocks = [block for block in self.blocks if isinstance(block, TransformerBlock)]
        return TransformerStepper(self, self.first, blocks, self.norm, n)
