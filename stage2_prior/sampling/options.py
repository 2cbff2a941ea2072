"""How the distribution of a code is sharpened before a draw."""

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

# Beyond these, float32 logits overflow, or no code is left to draw.
_SMALLEST, _LARGEST = 1e-6, 1e6
_MOST_CODES = 2**31 - 1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SamplingOptions:
    """How logits are sharpened before a draw. The defaults draw from the distribution that the prior has learned.

    `guidance` acts on pairs of logits, in GuidedStepper; `sharpen` does the rest.
    """

    guidance: float = Field(
        default=1.0,
        ge=0,
        le=_LARGEST,
        description="Scale of classifier-free guidance: above 1, images show their class more clearly and vary less.",
    )
    temperature: float = Field(
        default=1.0,
        ge=_SMALLEST,
        le=_LARGEST,
        description="Divides the logits; below 1, codes are more probable and vary less.",
    )
    top_k: int | None = Field(
        default=None, ge=1, le=_MOST_CODES, description="Draw from the k most probable codes only."
    )
    top_p: float | None = Field(
        default=None, ge=_SMALLEST, le=1, description="Draw from the fewest codes whose probabilities sum to p."
    )

    def sharpen(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
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
    before = probabilities.cumsum(1) - probabilities  # the probability of all more probable codes together
    return logits.masked_fill(torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before >= mass), -torch.inf)
