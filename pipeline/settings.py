"""How a network is trained: options that both stages share, schedules, presets."""

import math
from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainingConfig:
    """The training of one network."""

    steps: int | None = Field(default=None, ge=1, description="Training steps.")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Train about this long instead: timed steps say how many steps that is.",
    )
    batch_size: int = Field(default=128, ge=1, description="Images a step, over all processes.")
    micro_batches: int | None = Field(
        default=None,
        ge=1,
        description="Parts a batch is cut into, a multiple of the processes; default one a process.",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Largest, after the warm-up.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Of the learning rate after the warm-up: half a cosine down to zero, or constant."
    )
    warmup_steps: int = Field(default=100, ge=0, description="Steps of linear warm-up, a tenth of the run at most.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's, on weights but not on biases or codebooks.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="AdamW's decay of squared gradients.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    average_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights that is kept, for priors; 0 for none.",
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of matrix products; auto is bfloat16 where the device has it in hardware.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the weights, the data's order and all noise.")
    evaluations: int = Field(default=5, ge=1, description="Evaluations on the held-out split, over the run.")
    patience: int = Field(
        default=0,
        ge=0,
        description="Stop early after this many evaluations without a better one: the network overfits; 0 for never.",
    )
    checkpoints: int = Field(default=5, ge=1, description="Checkpoints written over the run.")
    keep: int = Field(default=2, ge=1, description="Latest checkpoints kept, besides the best.")

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
    """Whether something done `times` times over a run, evenly and the last time at its end, is due after a step."""
    return (step * times) // total_steps > ((step - 1) * times) // total_steps


def evaluations_since(config: TrainingConfig, best_step: int, step: int, total_steps: int) -> int:
    """How many evaluations lie between the best one and a step."""
    return (step * config.evaluations) // total_steps - (best_step * config.evaluations) // total_steps


def preset_for(images: int) -> str:
    """The preset of a prior for a number of training images: little data wants a small network and much dropout.

    `large` is never chosen unasked: it takes a GPU.
    """
    return "small" if images < _LITTLE_DATA else "base"


class Preset(NamedTuple):
    """What a size means for both stages: defaults that a flag overrides."""

    vqvae: dict[str, Any]
    prior: dict[str, Any]


_PRIOR = {
    "average_decay": 0.999,
    "weight_decay": 0.01,
    "learning_rate": 2e-3,
    "label_dropout": 0.1,
    "evaluations": 10,
    "patience": 3,
}
_LITTLE_DATA = 5_000  # training images below which a smaller prior with more dropout does better

_SMALL = Preset(
    vqvae={"hidden": 64, "num_codes": 64, "steps": 1000, "batch_size": 64},
    prior=_PRIOR
    | {
        "hidden": 64,
        "layers": 6,
        "first_kernel": 5,
        "head": 128,
        "dropout": 0.5,
        "label_dropout": 0.05,
        "learning_rate": 1e-3,
        "steps": 700,
        "batch_size": 64,
    },
)

PRESETS = {
    "tiny": Preset(
        vqvae={
            "hidden": 32,
            "residual_blocks": 1,
            "residual_channels": 16,
            "num_codes": 64,
            "steps": 200,
            "batch_size": 32,
        },
        prior=_PRIOR | {"hidden": 32, "layers": 5, "head": 64, "steps": 300, "batch_size": 32},
    ),
    # The embedded digits hold 8x8 pixels of detail: 4x4 codes are enough, and easier to learn from 1,600 of them.
    "digits": Preset(vqvae=_SMALL.vqvae | {"halvings": 3}, prior=_SMALL.prior),
    "small": _SMALL,
    "base": Preset(
        vqvae={"steps": 20_000, "batch_size": 64, "learning_rate": 2e-3},
        prior=_PRIOR
        | {"hidden": 96, "layers": 8, "first_kernel": 5, "dropout": 0.1, "steps": 50_000, "batch_size": 32},
    ),
    "large": Preset(
        vqvae={
            "hidden": 256,
            "residual_blocks": 4,
            "residual_channels": 64,
            "num_codes": 2048,
            "steps": 100_000,
        },
        prior=_PRIOR
        | {"hidden": 256, "layers": 15, "head": 512, "dropout": 0.1, "learning_rate": 1e-3, "steps": 200_000},
    ),
}
