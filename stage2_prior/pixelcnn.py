"""The gated PixelCNN over one level of codes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage2_prior.config import PixelCNNConfig
from stage2_prior.incremental import PixelCNNStepper
from stage2_prior.layers import GatedLayer, Stacks
from stage2_prior.prior import Prior, check_labels


class PixelCNN(Prior):
    """Gated PixelCNN (van den Oord et al. 2016) with embedded codes, both stacks and optional class conditioning."""

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_codes, config.hidden)
        self.layers = nn.ModuleList(
            GatedLayer(
                config.hidden,
                kernel=config.first_kernel if index == 0 else config.kernel,
                num_classes=config.num_classes,
                dropout=config.dropout,
                strict=index == 0,
            )
            for index in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(config.hidden, config.head, 1),
            nn.ReLU(),
            nn.Conv2d(config.head, config.num_codes, 1),
        )

    def forward(self, codes: Int[Tensor, "n h w"], labels: Int[Tensor, "n"] | None) -> Float[Tensor, "n k h w"]:
        """Logits (n, num_codes, h, w) under teacher forcing.

        Raises PriorError when labels are missing on a conditional prior, or given to an unconditional one.
        """
        check_labels(self.config.num_classes, labels)
        # (n, h, w, c) seen as (n, c, h, w): channels-last memory without a copy.
        embedded = self._hide(self.embedding(codes)).permute(0, 3, 1, 2)
        stacks = Stacks(embedded, embedded)
        for layer in self.layers:
            stacks = layer(stacks, labels)
        logits: Tensor = self.head(stacks.horizontal)
        return logits

    def _hide(self, embedded: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        """While training, zero the embeddings of random codes: the network learns to do without any of them."""
        if not self.training or not self.config.code_dropout:
            return embedded
        kept = torch.rand(embedded.shape[:3], device=embedded.device) >= self.config.code_dropout
        return embedded * kept[..., None]

    def stepper(self, n: int) -> PixelCNNStepper:
        """Logits position by position, for n maps of the configured size."""
        return PixelCNNStepper(self.config, self.embedding, self.layers, self.head, n)
