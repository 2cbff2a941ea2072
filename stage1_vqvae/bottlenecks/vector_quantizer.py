"""Vector quantisation with straight-through gradients.

van den Oord et al. 2017, "Neural Discrete Representation Learning": equations 1-3 for the nearest code and the
loss, appendix A.1 for the moving-average codebook.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_vqvae.bottlenecks.base import Bottleneck, BottleneckOutput, Reset, Statistics
from stage1_vqvae.bottlenecks.codebook import code_sums, k_means, nearest_codes
from stage1_vqvae.config import VQVAEConfig

LAPLACE = 1e-5  # epsilon of the smoothed counts, appendix A.1
SAMPLES = 1024  # encoder outputs kept from a micro-batch, onto which dead codes may be moved


class VectorQuantizer(Bottleneck):
    """A codebook of K vectors, learned by moving averages (`ema`, a buffer) or by the codebook loss (`gradient`).

    Computes in float32 whatever the precision around it: in bfloat16 one code in a hundred changes.
    """

    codebook: Tensor  # (codes, dim)
    mean_counts: Tensor  # (codes,) moving average of vectors a step
    mean_sums: Tensor  # (codes, dim) moving average of the sum of those vectors, `ema` only

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config, self.inputs, self.outputs = config, config.code_dim, config.code_dim
        codebook = torch.randn(config.num_codes, config.code_dim) / config.code_dim**0.5
        self.register_buffer("mean_counts", torch.ones(config.num_codes))
        if config.codebook_rule == "ema":
            self.register_buffer("codebook", codebook)
            self.register_buffer("mean_sums", codebook.clone())
        else:
            self.codebook = nn.Parameter(codebook)

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float = 0.0) -> BottleneckOutput:
        with torch.autocast(outputs.device.type, enabled=False):
            return self._quantise(outputs.float())

    def _quantise(self, outputs: Float[Tensor, "n dim h w"]) -> BottleneckOutput:
        codes = self.encode(outputs)
        code_vectors = self.decode(codes)
        loss = self.config.commitment * F.mse_loss(outputs, code_vectors.detach())  # equation 3, third term
        if self.config.codebook_rule == "gradient":
            loss = loss + F.mse_loss(code_vectors, outputs.detach())  # equation 3, second term
        statistics = self._statistics(outputs.detach(), codes)
        return BottleneckOutput(
            quantised=outputs + (code_vectors - outputs).detach(),
            codes=codes,
            loss=loss,
            statistics=statistics,
        )

    def _statistics(self, outputs: Float[Tensor, "n dim h w"], codes: Int[Tensor, "n h w"]) -> Statistics:
        vectors = rearrange(outputs, "n dim h w -> (n h w) dim")
        sums = code_sums(vectors, codes.flatten(), self.config.num_codes)
        if not self.training:
            return Statistics(sums, vectors[:0])
        # From distinct places: two codes moved onto one vector would tie for it, and rounding would choose.
        chosen = torch.randperm(vectors.shape[0], device=vectors.device)[:SAMPLES]
        return Statistics(sums, vectors[chosen])

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The index of the nearest code at each position (equation 1)."""
        vectors = rearrange(outputs.detach(), "n dim h w -> (n h w) dim")
        with torch.autocast(outputs.device.type, enabled=False):
            codes = nearest_codes(vectors.to(self.codebook.dtype), self.codebook.detach())
        n, _, height, width = outputs.shape
        return rearrange(codes, "(n h w) -> n h w", n=n, h=height, w=width)

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The code vectors at each position."""
        return rearrange(F.embedding(codes, self.codebook), "n h w dim -> n dim h w")

    @torch.no_grad()
    def initialise(self, batches: Sequence[Float[Tensor, "vectors dim"]], generator: torch.Generator) -> None:
        """k-means on pooled encoder outputs: a random codebook would leave all but a few codes without a vector."""
        centres, counts = k_means(torch.cat(list(batches)).float(), self.config.num_codes, generator)
        counts = (counts / len(batches)).clamp(min=LAPLACE)
        self.codebook.copy_(centres)
        self.mean_counts.copy_(counts)
        if self.config.codebook_rule == "ema":
            self.mean_sums.copy_(centres * counts[:, None])

    @torch.no_grad()
    def update(self, statistics: Statistics | None, progress: float, generator: torch.Generator) -> list[Reset]:
        """Move the averages and with them, under `ema`, the codes; then revive the dead ones."""
        assert statistics is not None
        sums, counts = statistics.sums[:, :-1], statistics.sums[:, -1]
        self.mean_counts.lerp_(counts, 1 - self.config.ema_decay)
        if self.config.codebook_rule == "ema":
            self.mean_sums.lerp_(sums, 1 - self.config.ema_decay)
            used = (self.mean_counts > LAPLACE)[
                :, None
            ]  # of a code that nothing chose for long, the average says nothing
            self.codebook.copy_(torch.where(used, self.mean_sums / self._smoothed_counts()[:, None], self.codebook))
        if progress >= self.config.revival_ends or self.config.revival_threshold == 0:
            return []
        return self._revive(statistics.samples, generator)

    def _smoothed_counts(self) -> Float[Tensor, "codes"]:
        total = self.mean_counts.sum()
        return (self.mean_counts + LAPLACE) / (total + self.config.num_codes * LAPLACE) * total

    def _revive(self, samples: Float[Tensor, "samples dim"], generator: torch.Generator) -> list[Reset]:
        """Put each dead code onto an encoder output of its own, with the averages of a code of mean use.

        Written without a branch on the data, so that no step waits for the device.
        """
        mean = self.mean_counts.mean()
        dead = self.mean_counts < self.config.revival_threshold * mean
        rank = dead.cumsum(0) - 1  # the r-th dead code takes the r-th sample of a random order
        revived = dead & (rank < samples.shape[0])
        order = torch.randperm(samples.shape[0], generator=generator, device=generator.device)
        replacements = samples[order][rank.clamp(0, samples.shape[0] - 1)]
        self._replace(revived, replacements, mean)
        return [Reset(self.codebook, revived)] if isinstance(self.codebook, nn.Parameter) else []

    def _replace(self, rows: Bool[Tensor, "codes"], vectors: Float[Tensor, "codes dim"], count: Tensor) -> None:
        mask = rows[:, None]
        self.codebook.copy_(torch.where(mask, vectors, self.codebook))
        self.mean_counts.copy_(torch.where(rows, count, self.mean_counts))
        if self.config.codebook_rule == "ema":
            self.mean_sums.copy_(torch.where(mask, vectors * count, self.mean_sums))
