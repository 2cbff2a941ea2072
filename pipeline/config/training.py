"""How a network is trained: the options that both stages share, schedules, and what a prior sees of each image."""

import math
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TrainingConfig:
    """The training of one network."""

    steps: int | None = Field(default=None, ge=1, le=10**9, description="Training steps.")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=10**7,
        description="Train about this long instead: turned into a number of steps by timing the first ones.",
    )
    batch_size: int = Field(default=128, ge=1, le=2**24, description="Images per step, over all processes together.")
    micro_batches: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description="Parts a batch is cut into, a multiple of the number of processes [default: one per process].",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Largest learning rate, reached after the warm-up.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up: half a cosine down to zero, or constant."
    )
    warmup_steps: int = Field(
        default=100,
        ge=0,
        le=10**9,
        description="Steps of linear warm-up of the learning rate; at most a tenth of the run.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Weight decay of AdamW, on weights but not on biases or codebooks."
    )
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Decay of AdamW's average of squared gradients.")
    clip: float = Field(default=1.0, gt=0, description="Gradients of a larger norm are scaled down to this one.")
    average_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, which then is evaluated and kept; 0: no average.",
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of matrix products; auto is bfloat16 where the device has it in hardware.",
    )
    deterministic: bool = Field(
        default=False,
        description="On a GPU too a resumed run equals the uninterrupted one bit for bit; slower there.",
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the weights, the data's order and all noise.")
    evaluations: int = Field(default=5, ge=1, le=10**6, description="Evaluations on the validation part, over the run.")
    patience: int = Field(
        default=0,
        ge=0,
        le=10**6,
        description="Stop after this many evaluations without a better one, when the network overfits; 0: never.",
    )
    checkpoints: int = Field(default=5, ge=1, le=10**6, description="Checkpoints written over the run.")
    keep: int = Field(default=2, ge=1, le=10**6, description="Latest checkpoints to keep, besides the best weights.")

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        parts = self.micro_batches or 1
        if self.batch_size % parts:
            raise ValueError(f"--batch-size {self.batch_size} is not divisible by --micro-batches {parts}")
        return self


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then what the schedule says: a function of (step, total steps) alone."""
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def is_due(times: int, step: int, total_steps: int) -> bool:
    """Whether something done `times` times over a run, evenly and the last time at its end, is due after a step.

    >>> [step for step in range(1, 11) if is_due(3, step, total_steps=10)]
    [4, 7, 10]
    """
    return (step * times) // total_steps > ((step - 1) * times) // total_steps


def evaluations_since(config: TrainingConfig, best_step: int, step: int, total_steps: int) -> int:
    """How many evaluations lie between the best one and a step."""
    return (step * config.evaluations) // total_steps - (best_step * config.evaluations) // total_steps


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AugmentConfig:
    """What else of each image a prior learns from, so that little data goes further."""

    encodings: int = Field(
        default=1,
        ge=1,
        le=10**4,
        description="Encodings of an image; those after the first are of the image moved by --shift.",
    )
    shift: int = Field(
        default=0, ge=0, le=2**12, description="Pixels at most that an image is moved by, in each direction."
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.encodings > 1) != (self.shift > 0):
            raise ValueError(
                f"--encodings {self.encodings} and --shift {self.shift} go together: several encodings of an image "
                "differ by how it was moved"
            )
        return self
