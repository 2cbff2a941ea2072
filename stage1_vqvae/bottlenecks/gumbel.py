"""The discrete VAE: a categorical latent, relaxed by Gumbel-softmax while it is trained.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A (schedules); Jang et al. 2016,
"Categorical Reparameterization with Gumbel-Softmax", equations 1 and 2.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import Bottleneck, BottleneckOutput
from stage1_vqvae.config import VQVAEConfig

FINAL_TEMPERATURE = 1 / 16
WARM_UP = 0.1  # share of the training over which the weight of the KL term rises from 0


def temperature(progress: float) -> float:
    """From 1 to 1/16 along half a cosine."""
    return FINAL_TEMPERATURE + (1 - FINAL_TEMPERATURE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def kl_to_uniform(logits: Float[Tensor, "n k h w"]) -> Float[Tensor, "n h w"]:
    """KL(softmax(logits) | uniform) in nats: ln K less the entropy."""
    log_probabilities = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (log_probabilities.exp() * log_probabilities).sum(1)


class GumbelQuantizer(Bottleneck):
    """The encoder gives logits over codes. In training the decoder sees a mixture of code vectors, otherwise the
    most probable one's. Computes in float32 whatever the precision around it."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kl_weight = config.num_codes, config.code_dim, config.kl_weight
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.code_dim))

    def forward(self, outputs: Float[Tensor, "n k h w"], progress: float) -> BottleneckOutput:
        with torch.autocast(outputs.device.type, enabled=False):
            logits = outputs.float()
            codes = logits.detach().argmax(1)
            kl = kl_to_uniform(logits).mean()
            quantised = self._mixture(logits, progress) if self.training else self.decode(codes)
            return BottleneckOutput(
                quantised=quantised,
                codes=codes,
                loss=self.kl_weight * min(1.0, progress / WARM_UP) * kl,
                metrics={"kl": kl.detach()},
            )

    def _mixture(self, logits: Float[Tensor, "n k h w"], progress: float) -> Float[Tensor, "n dim h w"]:
        weights = F.gumbel_softmax(logits, tau=temperature(progress), dim=1)
        return einsum(weights, self.codebook, "n k h w, k dim -> n dim h w")

    def encode(self, outputs: Float[Tensor, "n k h w"]) -> Int[Tensor, "n h w"]:
        """The most probable code."""
        return outputs.detach().argmax(1)

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The code vectors."""
        return rearrange(F.embedding(codes, self.codebook), "n h w dim -> n dim h w")
