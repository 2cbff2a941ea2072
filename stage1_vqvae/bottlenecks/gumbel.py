"""The discrete VAE: a categorical latent, relaxed by Gumbel-softmax in training.

Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A (the temperature); Jang et al.
2016, "Categorical Reparameterization with Gumbel-Softmax", equations 1 and 2; Takida et al. 2022, "SQ-VAE: Variational
Bayes on Discrete Representation with Self-annealed Stochastic Quantization", section 3, for probabilities by distance.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import (
    BottleneckOutput,
    DiscreteBottleneck,
    Reset,
    Statistics,
    at_least_float32,
    full_precision,
    warm_up,
)
from stage1_vqvae.bottlenecks.codebook import k_means, nearest_codes, revival, sample_vectors
from stage1_vqvae.config import VQVAEConfig

FINAL_TEMPERATURE = 1 / 16


def temperature(progress: float) -> float:
    """The temperature of the Gumbel-softmax: from 1 to 1/16 along half a cosine."""
    return FINAL_TEMPERATURE + (1 - FINAL_TEMPERATURE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def kl_to_uniform(logits: Float[Tensor, "vectors k"]) -> Float[Tensor, "vectors"]:
    """KL(softmax(logits) | uniform) in nats: ln K - entropy."""
    log_probabilities = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (log_probabilities.exp() * log_probabilities).sum(1)


class GumbelQuantizer(DiscreteBottleneck):
    """q(code | z) is proportional to exp(-precision |z - e|^2). In training the decoder's input is a mixture of code
    vectors, otherwise the most probable, which is the nearest. Computes in float32 whatever the precision around it.

    The dVAE's own logits, one linear weight per code, left all but ten of 512 codes unused on digits; with distances
    codes can start from k-means, and a dead code can be moved to where encoder outputs are.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config.num_codes, config.ema_decay)
        self.config, self.inputs, self.outputs = config, config.dimension, config.dimension
        self.kl_scale = config.kl_scale / config.values  # on nats per image, as the loss is a mean over pixel values
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.dimension))
        self.log_precision = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        with full_precision(outputs.device):
            return self._relax(at_least_float32(outputs), progress)

    def _relax(self, outputs: Float[Tensor, "n dim h w"], progress: float) -> BottleneckOutput:
        n, _, height, width = outputs.shape
        vectors = rearrange(outputs, "n dim h w -> (n h w) dim")
        logits, codes = self.logits(vectors), nearest_codes(vectors.detach(), self.codebook.detach())
        kl = kl_to_uniform(logits)
        weights = F.gumbel_softmax(logits, tau=temperature(progress), dim=1) if self.training else None
        quantized = F.embedding(codes, self.codebook) if weights is None else weights @ self.codebook
        counts = self.counts(codes)
        return BottleneckOutput(
            quantized=rearrange(quantized, "(n h w) dim -> n dim h w", n=n, h=height, w=width),
            codes=rearrange(codes, "(n h w) -> n h w", n=n, h=height, w=width),
            loss=self.kl_scale * warm_up(progress) * kl.sum() / n,
            metrics={"kl": kl.detach().mean()},
            statistics=counts._replace(samples=sample_vectors(vectors)) if self.training else counts,
        )

    def logits(self, vectors: Float[Tensor, "vectors dim"]) -> Float[Tensor, "vectors k"]:
        """Unnormalised ln q: -precision |z - e|^2, without the terms that are equal for all codes."""
        precision, centre = self.log_precision.exp(), self.codebook.detach().mean(0)  # squares far from 0 lose digits
        codes = self.codebook - centre
        return torch.addmm(-precision * codes.square().sum(1), vectors - centre, 2 * precision * codes.T)

    @torch.no_grad()
    def initialise(self, batches: Sequence[Float[Tensor, "vectors dim"]], generator: torch.Generator) -> None:
        """k-means on pooled encoder outputs; the precision is 1 / the mean squared distance to the nearest code."""
        vectors = torch.cat(list(batches)).float()
        centres, counts = k_means(vectors, self.num_codes, generator)
        self.codebook.copy_(centres)
        self.mean_counts.copy_((counts / len(batches)).clamp(min=1e-5))
        distances = vectors - F.embedding(nearest_codes(vectors, centres), centres)
        self.log_precision.copy_(-distances.square().sum(1).mean().clamp(min=1e-6).log())

    @torch.no_grad()
    def update(self, statistics: Statistics, progress: float, generator: torch.Generator) -> list[Reset]:
        """Move the average of how often each code is used, and revive dead codes."""
        super().update(statistics, progress, generator)
        if progress >= self.config.revival_ends or self.config.revival_threshold == 0:
            return []
        rows, vectors, count = revival(self.mean_counts, statistics.samples, self.config.revival_threshold, generator)
        self.codebook.copy_(torch.where(rows[:, None], vectors, self.codebook))
        self.mean_counts.copy_(torch.where(rows, count, self.mean_counts))
        return [Reset(self.codebook, rows)]

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The most probable code."""
        n, _, height, width = outputs.shape
        with full_precision(outputs.device), torch.no_grad():
            vectors = rearrange(outputs.to(self.codebook.dtype), "n dim h w -> (n h w) dim")
            codes = nearest_codes(vectors, self.codebook.detach())
        return rearrange(codes, "(n h w) -> n h w", n=n, h=height, w=width)

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The code vectors."""
        return rearrange(F.embedding(codes, self.codebook), "n h w dim -> n dim h w")
