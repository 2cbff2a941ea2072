"""What can be measured of a run, and with what; and what can be looked for in its images."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from stage2_prior import GuidanceSchedule

MOST_BY_DEFAULT = 10_000  # images of each set

_LARGEST_SEED = 2**63 - 1
_LEAST, _LARGEST = {"guidance": 0.0, "temperature": 1e-6}, 1e6  # of SamplingOptions


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class EvaluateConfig:
    """How a run is measured."""

    n: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Images of each set that is compared [default: as many as the validation and the test part both "
        f"have, {MOST_BY_DEFAULT:,} at most].",
    )
    guidance: tuple[float, ...] = Field(
        default=(),
        description="Scales of guidance to compare, such as 1,1.5,2 [default: the prior's own].",
    )
    guidance_schedule: tuple[GuidanceSchedule, ...] = Field(
        default=(), description="Schedules of guidance to compare, such as constant,linear [default: constant]."
    )
    temperature: tuple[float, ...] = Field(
        default=(), description="Temperatures to compare, such as 0.9,1 [default: 1]."
    )
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED, description="Seed of the samples.")
    judge: Literal[1, 2] = Field(
        default=1, description="Network that judges; 2, another one, confirms what was chosen with 1."
    )
    inception: bool = Field(
        default=False,
        description="Also FID by Inception-v3, and LPIPS; their weights are downloaded when first used.",
    )

    @field_validator("guidance_schedule", mode="before")
    @classmethod
    def _as_schedules(cls, value: object) -> object:
        """A schedule, several, or a text of several between commas."""
        known, names = get_args(GuidanceSchedule), value.split(",") if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not all(name in known for name in names):
            raise ValueError(f"--guidance-schedule takes {', '.join(known)}, or several; got {value!r:.60}")
        return tuple(names)

    @field_validator("guidance", "temperature", mode="before")
    @classmethod
    def _as_numbers(cls, value: object, info: ValidationInfo) -> object:
        """A number, several, or a text of several between commas."""
        least, parts = _LEAST[str(info.field_name)], value.split(",") if isinstance(value, str) else value
        try:
            numbers = tuple(map(float, parts if isinstance(parts, Sequence) else (parts,)))
        except (TypeError, ValueError, OverflowError):
            numbers = (math.nan,)
        if not all(least <= number <= _LARGEST for number in numbers):
            takes = f"numbers from {least:g} to {_LARGEST:g}, such as 1,1.5,2"
            raise ValueError(f"--{info.field_name} takes {takes}; got {value!r:.60}")
        return numbers


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class NearestConfig:
    """What is looked for among the images of a run."""

    k: int = Field(default=8, ge=1, le=1000, description="Nearest images of each one given.")
