"""Drawing code maps from a prior: one loop for every prior, randomness as an argument.

`draw` asks a Stepper for the logits of one position after another. Every prior has a fast one of its own
(`Prior.stepper`); the one here runs the whole network over the rows so far, so it is right for any prior, and slow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from stage2_prior.noise import gumbel, image_words
from stage2_prior.prior import Prior, Stepper


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Warp:
    """How logits are sharpened before a draw. The defaults draw from the prior as it was learned.

    `guidance` acts on a pair of logits, in GuidedStepper; the rest is done here.
    """

    guidance: float = Field(
        default=1.0, ge=0, description="Classifier-free guidance: above 1 images show their class more, and vary less."
    )
    temperature: float = Field(default=1.0, gt=0, description="Divides the logits; below 1 is safer and less varied.")
    top_k: int | None = Field(default=None, ge=1, description="Draw from the k most probable codes only.")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="Draw from the fewest codes that hold this probability."
    )

    def __call__(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Logits of the sharpened distribution; excluded codes have -inf. Temperature first, then top-k, then top-p."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            logits = keep_top_k(logits, self.top_k)
        return logits if self.top_p is None else keep_top_p(logits, self.top_p)


def keep_top_k(logits: Float[Tensor, "n k"], count: int) -> Float[Tensor, "n k"]:
    """-inf for all but the `count` largest logits of each row (and those equal to the last of them)."""
    threshold = logits.topk(count, dim=1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "n k"], mass: float) -> Float[Tensor, "n k"]:
    """-inf for all but the fewest codes whose probabilities sum to `mass` (Holtzman et al. 2020, nucleus sampling)."""
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    probabilities = ordered.softmax(1)
    before = probabilities.cumsum(1) - probabilities  # the mass of all more probable codes
    return logits.masked_fill(torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before >= mass), -torch.inf)


class PrefixStepper:
    """The plain stepper: a full forward pass over the rows so far for every position."""

    def __init__(self, prior: Prior, n: int) -> None:
        device = next(prior.parameters()).device
        self.prior, self.row, self.size = prior, 0, (prior.config.height, prior.config.width)
        self.labels: Int[Tensor, "n"] | None = None
        self.coarser: Sequence[Tensor] = ()
        self.codes = torch.zeros(n, *self.size, dtype=torch.int64, device=device)

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start maps of these classes, beneath these coarser levels."""
        self.labels, self.coarser = labels, coarser

    def begin_row(self, row: int) -> None:
        """Remember the row: nothing is computed ahead."""
        self.row = row

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """Run the network on all rows up to the current one; codes not drawn yet do not matter to a causal net."""
        return self.prior(self.codes[:, : self.row + 1], self.labels, self.coarser)[:, :, self.row, column]

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Write the codes into the map."""
        self.codes[:, self.row, column] = codes

    def memory(self) -> int:
        """Bytes of the map."""
        return self.codes.nbytes


NOISE_BLOCK = 2**17  # values of noise made at a time: one call serves several positions of few images


class Noise(NamedTuple):
    """Which noise the images of a batch are drawn with: that of their own indices, wherever they are drawn."""

    seed: int
    image_indices: Int[Tensor, "n"]
    level: int = 0


class Drawn(NamedTuple):
    """Codes (n, height, width), and their log-probability (n,) in nats under the stepper's logits, before any warp;
    the part of it that is owed to known codes."""

    codes: Int[Tensor, "n h w"]
    log_probability: Float[Tensor, "n"]
    of_known: Float[Tensor, "n"]


@torch.no_grad()
def draw(
    stepper: Stepper,
    noise: Noise,
    warp: Warp,
    known: Int[Tensor, "n h w"] | None = None,
) -> Drawn:
    """Draw maps position by position; `known` codes (those >= 0) are kept.

    The stepper has begun. A draw is argmax(logits + Gumbel noise), which follows softmax(logits) exactly (Gumbel 1954).
    """
    height, width = stepper.size
    words = image_words(noise.seed, noise.image_indices, noise.level)
    drawn = torch.empty(len(words), height, width, dtype=torch.int64, device=words.device)
    total, of_known = torch.zeros(2, len(words), dtype=torch.float64, device=words.device).unbind(0)
    for row in range(height):
        stepper.begin_row(row)
        for column in range(width):
            logits = stepper.logits(column)
            block = max(1, NOISE_BLOCK // logits.numel())
            if column % block == 0:
                positions = torch.arange(row * width + column, row * width + min(column + block, width))
                noises = gumbel(words, positions.to(words.device), logits.shape[1]).to(logits.dtype)
            codes = (warp(logits) + noises[column % block]).argmax(1)
            if known is not None:
                codes = torch.where(known[:, row, column] >= 0, known[:, row, column], codes)
            drawn[:, row, column] = codes
            own = logits.log_softmax(1).gather(1, codes[:, None])[:, 0]
            total += own
            if known is not None:
                of_known += own * (known[:, row, column] >= 0)
            stepper.accept(column, codes)
    return Drawn(drawn, total, of_known)
