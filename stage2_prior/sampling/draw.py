"""Drawing code maps from a prior: one loop for every prior, randomness as an argument.

`draw` takes the logits of one position after another from a Stepper. Every prior has a fast one of its own
(`Prior.stepper`); `PrefixStepper` runs the whole network on the rows so far, which is right for any prior, and slow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prior.priors.base import Prior, Stepper
from stage2_prior.sampling.noise import gumbel, image_words
from stage2_prior.sampling.options import SamplingOptions

NOISE_BLOCK = 2**17  # values of noise made at a time: one call serves several positions where there are few images


class PrefixStepper:
    """A Stepper for any prior: a full forward pass on the rows so far for every position."""

    def __init__(self, prior: Prior, n: int) -> None:
        device = next(prior.parameters()).device
        self.prior, self.row, self.size = prior, 0, (prior.config.height, prior.config.width)
        self.labels: Int[Tensor, "n"] | None = None
        self.coarser: Sequence[Tensor] = ()
        self.codes = torch.zeros(n, *self.size, dtype=torch.int64, device=device)

    def begin(self, labels: Int[Tensor, "n"] | None, coarser: Sequence[Tensor] = ()) -> None:
        """Start maps of these classes, conditioned on these coarser levels."""
        self.labels, self.coarser = labels, coarser

    def begin_row(self, row: int) -> None:
        """Remember the row: nothing is computed ahead."""
        self.row = row

    def logits(self, column: int) -> Float[Tensor, "n k"]:
        """Run the network on all rows up to the current one; being causal, it ignores codes that are not drawn yet."""
        return self.prior(self.codes[:, : self.row + 1], self.labels, self.coarser)[:, :, self.row, column]

    def accept(self, column: int, codes: Int[Tensor, "n"]) -> None:
        """Write the codes into the map."""
        self.codes[:, self.row, column] = codes

    def memory(self) -> int:
        """Bytes of the map."""
        return self.codes.nbytes


class Noise(NamedTuple):
    """Which noise the images of a batch are drawn with: a function of the seed, an image's own index and the level."""

    seed: int
    image_indices: Int[Tensor, "n"]
    level: int = 0


class SampledCodes(NamedTuple):
    """Codes (n, height, width), and their log-probability (n,) in nats under the stepper's logits before sharpening:
    of all codes, and the part of it that belongs to known codes."""

    codes: Int[Tensor, "n h w"]
    log_probability: Float[Tensor, "n"]
    known_log_probability: Float[Tensor, "n"]


@torch.no_grad()
def draw(
    stepper: Stepper,
    noise: Noise,
    options: SamplingOptions,
    known: Int[Tensor, "n h w"] | None = None,
) -> SampledCodes:
    """Draw maps position by position, after `stepper.begin`; `known` codes (those >= 0) are kept.

    A draw is argmax(logits + Gumbel noise), which follows softmax(logits) exactly (Gumbel 1954).
    """
    height, width = stepper.size
    words = image_words(noise.seed, noise.image_indices, noise.level)
    drawn = torch.empty(len(words), height, width, dtype=torch.int64, device=words.device)
    total, known_total = torch.zeros(2, len(words), dtype=torch.float64, device=words.device).unbind(0)
    for row in range(height):
        stepper.begin_row(row)
        for column in range(width):
            logits = stepper.logits(column)
            block = max(1, NOISE_BLOCK // logits.numel())
            if column % block == 0:
                positions = torch.arange(row * width + column, row * width + min(column + block, width))
                noises = gumbel(words, positions.to(words.device), logits.shape[1]).to(logits.dtype)
            codes = (options.sharpen(logits) + noises[column % block]).argmax(1)
            if known is not None:
                codes = torch.where(known[:, row, column] >= 0, known[:, row, column], codes)
            drawn[:, row, column] = codes
            log_probability = logits.log_softmax(1).gather(1, codes[:, None])[:, 0]
            total += log_probability
            if known is not None:
                known_total += log_probability * (known[:, row, column] >= 0)
            stepper.accept(column, codes)
    return SampledCodes(drawn, total, known_total)
