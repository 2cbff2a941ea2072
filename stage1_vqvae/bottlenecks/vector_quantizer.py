"""Vector quantization with straight-through gradients.

van den Oord et al. 2017, "Neural Discrete Representation Learning": equations 1-3 for the nearest code and the
loss, appendix A.1 for the moving-average codebook. Yu et al. 2021, "Vector-quantized Image Modeling with Improved
VQGAN", section 3.2 for codes of length 1. Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized
Models with One Linear Layer", section 4 for SimVQ.
"""

from collections.abc import Mapping, Sequence

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
)
from stage1_vqvae.bottlenecks.codebook import code_sums, k_means, nearest_codes, revival, sample_vectors
from stage1_vqvae.config import VQVAEConfig

LAPLACE = 1e-5  # epsilon of the smoothed counts, appendix A.1


class VectorQuantizer(DiscreteBottleneck):
    """A codebook of K vectors, learned by one of three rules.

    `ema`: moving averages of encoder outputs (a buffer); `gradient`: the codebook loss; `simvq`: the codebook loss on
    a linear projection of fixed vectors, as k-means found them, so that all codes move together.

    Computes in float32 whatever the precision around it: in bfloat16 one code in a hundred changes.
    """

    sum_names = (*DiscreteBottleneck.sum_names, "squared_length", "vectors")
    codebook: Tensor  # (codes, dim); of simvq before its projection
    mean_sums: Tensor  # (codes, dim) moving average of the sum of a code's vectors, `ema` only

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config.num_codes, config.ema_decay)
        self.config, self.inputs, self.outputs = config, config.dimension, config.dimension
        codebook = torch.randn(config.num_codes, config.dimension) / config.dimension**0.5
        if config.codebook_rule == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        if config.codebook_rule == "ema":
            self.register_buffer("mean_sums", codebook.clone())
        if config.codebook_rule == "simvq":
            self.projection = nn.Parameter(torch.eye(config.dimension))

    def code_vectors(self) -> Float[Tensor, "codes dim"]:
        """The code vectors, projected and scaled, that encoder outputs are compared with."""
        projected = self.codebook @ self.projection if self.config.codebook_rule == "simvq" else self.codebook
        return self._scaled(projected)

    def _scaled(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        return F.normalize(vectors, dim=1) if self.config.unit_codes else vectors

    def forward(self, outputs: Float[Tensor, "n dim h w"], progress: float = 0.0) -> BottleneckOutput:
        with full_precision(outputs.device):
            return self._quantize(at_least_float32(outputs))

    def _quantize(self, outputs: Float[Tensor, "n dim h w"]) -> BottleneckOutput:
        vectors, codebook = self._scaled(_as_rows(outputs)), self.code_vectors()
        codes = nearest_codes(vectors.detach(), codebook.detach())
        chosen = F.embedding(codes, codebook)
        loss = self.config.commitment * F.mse_loss(vectors, chosen.detach())  # equation 3, third term
        if self.config.codebook_rule != "ema":
            loss = loss + F.mse_loss(chosen, vectors.detach())  # equation 3, second term
        n, _, height, width = outputs.shape
        straight = vectors + (chosen - vectors).detach()
        return BottleneckOutput(
            quantized=rearrange(straight, "(n h w) dim -> n dim h w", n=n, h=height, w=width),
            codes=rearrange(codes, "(n h w) -> n h w", n=n, h=height, w=width),
            loss=loss,
            statistics=Statistics(
                sums=code_sums(vectors.detach(), codes, self.num_codes),
                samples=sample_vectors(vectors) if self.training else vectors.detach()[:0],
            ),
        )

    def encode(self, outputs: Float[Tensor, "n dim h w"]) -> Int[Tensor, "n h w"]:
        """The index of the nearest code at each position (equation 1)."""
        with full_precision(outputs.device), torch.no_grad():
            codebook = self.code_vectors()
            codes = nearest_codes(self._scaled(_as_rows(outputs).to(codebook.dtype)), codebook)
        n, _, height, width = outputs.shape
        return rearrange(codes, "(n h w) -> n h w", n=n, h=height, w=width)

    def decode(self, codes: Int[Tensor, "n h w"]) -> Float[Tensor, "n dim h w"]:
        """The code vectors at each position."""
        with full_precision(codes.device):
            return rearrange(F.embedding(codes, self.code_vectors()), "n h w dim -> n dim h w")

    def measure(self, outputs: Float[Tensor, "n dim h w"], codes: Int[Tensor, "n h w"]) -> dict[str, Tensor]:
        """Also the squared lengths of encoder outputs."""
        squares = self._scaled(_as_rows(outputs)).double().square().sum(1)
        count = squares.new_tensor(squares.shape[0])
        return {**super().measure(outputs, codes), "squared_length": squares.sum(), "vectors": count}

    def summarise(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Also the lengths of code vectors and of encoder outputs (root mean squares)."""
        codes = self.code_vectors().detach().double().square().sum(1).mean().sqrt()
        outputs = (sums["squared_length"] / sums["vectors"]).sqrt()
        return {**super().summarise(sums), "code_norm": float(codes), "output_norm": float(outputs)}

    @torch.no_grad()
    def initialise(self, batches: Sequence[Float[Tensor, "vectors dim"]], generator: torch.Generator) -> None:
        """k-means on pooled encoder outputs: with a random codebook only a few codes would be used."""
        vectors = self._scaled(torch.cat(list(batches)).float())
        centres, counts = k_means(vectors, self.num_codes, generator)
        counts = (counts / len(batches)).clamp(min=LAPLACE)
        self.codebook.copy_(centres)
        self.mean_counts.copy_(counts)
        if self.config.codebook_rule == "ema":
            self.mean_sums.copy_(centres * counts[:, None])

    @torch.no_grad()
    def update(self, statistics: Statistics, progress: float, generator: torch.Generator) -> list[Reset]:
        """Move the averages and with them, under `ema`, the codes; then revive dead codes, except under `simvq`."""
        super().update(statistics, progress, generator)
        if self.config.codebook_rule == "ema":
            self.mean_sums.lerp_(statistics.sums[:, :-1], self.replacement_rate(statistics.sums[:, -1]))
            # With a count below epsilon, the smoothing would pull the code to 0.
            used = (self.mean_counts > LAPLACE)[:, None]
            self.codebook.copy_(torch.where(used, self.mean_sums / self._smoothed_counts()[:, None], self.codebook))
        ended = progress >= self.config.revival_ends or self.config.revival_threshold == 0
        if ended or self.config.codebook_rule == "simvq":
            return []
        return self._revive(statistics.samples, generator)

    def _smoothed_counts(self) -> Float[Tensor, "codes"]:
        total = self.mean_counts.sum()
        return (self.mean_counts + LAPLACE) / (total + self.num_codes * LAPLACE) * total

    def _revive(self, samples: Float[Tensor, "samples dim"], generator: torch.Generator) -> list[Reset]:
        """Move each dead code onto an encoder output of its own, with the averages of a code of mean use."""
        rows, vectors, count = revival(self.mean_counts, samples, self.config.revival_threshold, generator)
        self.codebook.copy_(torch.where(rows[:, None], vectors, self.codebook))
        self.mean_counts.copy_(torch.where(rows, count, self.mean_counts))
        if self.config.codebook_rule == "ema":
            self.mean_sums.copy_(torch.where(rows[:, None], vectors * count, self.mean_sums))
        return [Reset(self.codebook, rows)] if isinstance(self.codebook, nn.Parameter) else []


def _as_rows(outputs: Float[Tensor, "n dim h w"]) -> Float[Tensor, "vectors dim"]:
    return rearrange(outputs, "n dim h w -> (n h w) dim")
