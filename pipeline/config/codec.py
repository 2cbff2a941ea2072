"""What can be asked of compressing images."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

LARGEST_BLOCK = 4096


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class CompressConfig:
    """How images are compressed; what can be read back by itself is a block of them."""

    levels: int | None = Field(
        default=None, ge=1, description="Of several levels of codes keep the first ones only [default: all]."
    )
    block_size: int = Field(
        default=64,
        ge=1,
        le=LARGEST_BLOCK,
        description="Images a block: a larger one is faster, a smaller one gives single images sooner.",
    )
    keep_names: bool = Field(default=True, description="Keep the names of the files.")
