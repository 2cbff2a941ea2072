"""The discrete VAE: a categorical latent, relaxed by Gumbel-softmax while it is trained.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A (schedules); Jang et al. 2016,
"Categorical Reparameterization with Gumbel-Softmax", equations 1 and 2.
"""

import math
from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import BottleneckOutput, DiscreteBottleneck, at_least_float32, warm_up
from stage1_vqvae.config import VQVAEConfig

FINAL_TEMPERATURE = 1 / 16
SPREAD = 3.0  # standard deviation of the first logits; smaller ones drown in the noise, and codes collapse


def temperature(progress: float) -> float:
    """From 1 to 1/16 along half a cosine."""
    return FINAL_TEMPERATURE + (1 - FINAL_TEMPERATURE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def kl_to_uniform(logits: Float[Tensor, "n k h w"]) -> Float[Tensor, "n h w"]:
    """KL(softmax(logits) | uniform) in nats: ln K less the entropy."""
    log_probabilities = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (log_probabilities.exp() * log_probabilities).sum(1)


class GumbelQuantizer(DiscreteBottleneck):
    """The encoder gives logits over codes. In training the decoder sees a mixture of code vectors, otherwise the
    most probable one's. Computes in float32 whatever the precision around it."""

    shift: Tensor  # (codes, 1, 1) and
    gain: Tensor  # (codes, 1, 1), of the encoder's outputs, which make them logits

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config.num_codes, config.ema_decay)
        self.inputs, self.outputs = config.num_codes, config.code_dim
        self.kl_scale = config.kl_scale / config.values  # of nats an image, as the loss is a mean over its values
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.code_dim))
        self.register_buffer("shift", torch.zeros(config.num_codes, 1, 1))
        self.register_buffer("gain", torch.ones(config.num_codes, 1, 1))

    def forward(self, outputs: Float[Tensor, "n k h w"], progress: float) -> BottleneckOutput:
        with torch.autocast(outputs.device.type, enabled=False):
            logits = self._logits(outputs)
            codes = logits.detach().argmax(1)
            kl = kl_to_uniform(logits)
            quantised = self._mixture(logits, progress) if self.training else self.decode(codes)
            return BottleneckOutput(
                quantised=quantised,
                codes=codes,
                loss=self.kl_scale * warm_up(progress) * kl.sum((1, 2)).mean(),
                metrics={"kl": kl.detach().mean()},
                statistics=self.counts(codes),
            )

    def _mixture(self, logits: Float[Tensor, "n k h w"], progress: float) -> Float[Tensor, "n dim h w"]:
        weights = F.gumbel_softmax(logits, tau=temperature(progress), dim=1)
        return einsum(weights, self.codebook, "n k h w, k dim -> n dim h w")

    @torch.no_grad()
    def initialise(self, batches: Sequence[Float[Tensor, "vectors k"]], generator: torch.Generator) -> None:
        """Make the untrained encoder's logits of each code differ as much from place to place, and be heard above the
        noise: otherwise what all places have in common would choose the same few codes everywhere."""
        outputs = torch.cat(list(batches)).float()
        self.shift.copy_(rearrange(outputs.mean(0), "k -> k 1 1"))
        self.gain.copy_(rearrange(SPREAD / outputs.std(0).clamp(min=1e-6), "k -> k 1 1"))

    def _logits(self, outputs: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k h w"]:
        return (at_least_float32(outputs) - self.shift) * self.gain

    def encode(self, outputs: Float[Tensor, "n k h w"]) -> Int[Tensor, "n h w"]:
        """The most probable code."""
        with torch.autocast(outputs.device.type, enabled=False):
            return self._logits(outputs.detach()).argmax(1)

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The code vectors."""
        return rearrange(F.embedding(codes, self.codebook), "n h w dim -> n dim h w")
