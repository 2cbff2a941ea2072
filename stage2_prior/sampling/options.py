"""How the distribution of a code is guided and sharpened before a draw."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

# Beyond these, float32 logits overflow, or no code is left to draw.
_SMALLEST, _LARGEST = 1e-6, 1e6
_MOST_CODES = 2**31 - 1

GuidanceScale = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]
GuidanceSchedule = Literal["constant", "linear", "cosine"]
Temperature = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SamplingOptions:
    """How logits are sharpened before a draw.

    `guidance` and its schedule act on pairs of logits, in GuidedStepper, which takes a number; `sharpen` does the rest.
    None and "best" stand for what whoever makes the stepper knows: the default of a trained prior, and for "best" the
    guidance, its schedule and the temperature that were measured to be best for it.
    """

    guidance: float | Literal["best"] | None = Field(
        default=None,
        description="Scale of classifier-free guidance: above 1, images show their class more clearly and vary less; "
        "best: guidance, schedule and temperature as `gen evaluate` chose them [default: the run's own].",
    )
    guidance_schedule: GuidanceSchedule | None = Field(
        default=None,
        description="Guidance over the positions of a map: constant; linear or cosine, which grow from 1 at the first "
        "to the scale at the last, so that layouts vary more [default: constant].",
    )
    temperature: Temperature | None = Field(
        default=None,
        description="Divides the logits; below 1, codes are more probable and vary less [default: 1].",
    )
    top_k: int | None = Field(
        default=None, ge=1, le=_MOST_CODES, description="Draw from the k most probable codes only."
    )
    top_p: float | None = Field(
        default=None, ge=_SMALLEST, le=1, description="Draw from the fewest codes whose probabilities sum to p."
    )

    @field_validator("guidance", mode="plain")
    @classmethod
    def _is_a_number_or_best(cls, value: object) -> object:
        """In place of pydantic's check of a union, which complains once for each of its members."""
        if value is None or (isinstance(value, str) and value == "best"):
            return value
        try:
            return TypeAdapter(GuidanceScale).validate_python(value)
        except ValidationError as error:
            if error.errors()[0]["type"] in ("float_parsing", "float_type"):
                raise ValueError(f"--guidance takes a number or best; got {value!r:.60}") from None
            raise

    @model_validator(mode="after")
    def _is_not_given_twice(self) -> "SamplingOptions":
        if self.guidance == "best" and self.temperature is not None:
            raise ValueError(
                f"--guidance best has a temperature of its own; leave --temperature {self.temperature:g} out, or give "
                "both as numbers"
            )
        if self.guidance == "best" and self.guidance_schedule is not None:
            raise ValueError(
                f"--guidance best has a schedule of its own; leave --guidance-schedule {self.guidance_schedule} out, "
                "or give --guidance as a number"
            )
        return self

    def sharpen(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Logits of the sharpened distribution; excluded codes have -inf. Temperature first, then top-k, then top-p."""
        if self.temperature is not None and self.temperature != 1:
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
