"""What can be asked of drawing images: how many, how the work is cut, how they are written."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

GRID_IMAGES = 64  # images shown in grid.png, and drawn unless told otherwise

_MOST_IMAGES = 10**9  # more are no request that a machine could answer
_MOST_AT_A_TIME = 2**20
_MOST_COMPLETIONS = 10**6
_LARGEST_SEED = 2**63 - 1

Format = Literal["png", "zip", "safetensors"]
FloatPrecision = Literal["float32", "float64", "tf32"]
DecoderName = Literal["plain", "sharp"]  # as stage 1 trained it; as `gen sharpen` trained it further


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SampleConfig:
    """How many images are drawn, and how the work is cut; none of it but the seed changes an image."""

    n: int = Field(default=GRID_IMAGES, ge=1, le=_MOST_IMAGES, description="Images to draw.")
    seed: int = Field(
        default=0, ge=0, le=_LARGEST_SEED, description="Seed: image i of a seed is always the same picture."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_AT_A_TIME,
        description="Images drawn at a time by each process [default: as memory allows, 256 at most].",
    )
    precision: FloatPrecision = Field(
        default="float32",
        description="float64 draws the same codes in every batch size, without exception; tf32, on a GPU, draws "
        "faster, and now and then another code.",
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class FileConfig:
    """How images are written."""

    format: Format = Field(
        default="png", description="One PNG per image, or a .zip of them, or a .safetensors of pixels, for each part."
    )


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CompleteConfig:
    """How many completions, and with how much care."""

    n: int = Field(default=8, ge=1, le=_MOST_COMPLETIONS, description="Completions to draw.")
    candidates: int = Field(
        default=1,
        ge=1,
        le=_MOST_COMPLETIONS,
        description="Draws for each completion, of which one is chosen by how well it fits what is kept after it.",
    )
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED, description="Seed of the drawn codes.")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class InterpolateConfig:
    """How many images lead from one to another."""

    frames: int = Field(default=9, ge=2, le=1000, description="Images from the first to the second, both counted.")
