"""Everything that defines a VQ-VAE, in one frozen, validated dataclass."""

from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class VQVAEConfig:
    """The architecture of a VQ-VAE and the rules of its codebook.

    The three image fields come from the data; every other field is a command-line option.
    """

    channels: int = Field(default=3, ge=1, description="Channels of an image.", json_schema_extra={"from_data": True})
    height: int = Field(default=32, ge=1, description="Image height, pixels.", json_schema_extra={"from_data": True})
    width: int = Field(default=32, ge=1, description="Image width, pixels.", json_schema_extra={"from_data": True})
    hidden: int = Field(default=128, ge=2, description="Channels of the encoder's and decoder's feature maps.")
    residual_blocks: int = Field(default=2, ge=0, description="Residual blocks at the resolution of the codes.")
    residual_channels: int = Field(default=32, ge=1, description="Channels inside a residual block of 3x3 windows.")
    encoder_kernel: Literal[1, 3] = Field(
        default=1,
        description="Side of the encoder's windows at the resolution of the codes: with 1 a code describes its patch "
        "and little around it, and maps are easier to learn.",
    )
    halvings: int = Field(
        default=2, ge=1, le=8, description="Strided convolutions: codes are 2^halvings times smaller."
    )
    bottleneck: Literal["vq", "gumbel", "fsq"] = Field(
        default="vq",
        description="How codes are made: vq, the nearest vector of a codebook; gumbel, a categorical variable relaxed "
        "by Gumbel-softmax (dVAE); fsq, channels rounded to a few levels.",
    )
    num_codes: int = Field(default=512, ge=2, description="Codes in the codebook, K; for fsq a product of 2 to 8.")
    code_dim: int = Field(default=8, ge=1, description="Dimension of a code vector; 4 to 16 keeps all codes in use.")
    codebook_rule: Literal["ema", "gradient"] = Field(
        default="ema",
        description="How codes follow the encoder: moving averages, or the paper's codebook loss.",
    )
    kl_weight: float = Field(default=1e-3, ge=0, description="Of the KL term of gumbel, in nats a code.")
    commitment: float = Field(default=0.25, ge=0, description="Weight of the commitment loss, beta.")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Decay of the moving averages of code statistics.")
    revival_threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="A code used less than this fraction of the mean is moved; 0 never moves.",
    )
    revival_ends: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="Fraction of the training after which no code is moved any more.",
    )

    @model_validator(mode="after")
    def _codes_tile_the_image(self) -> "VQVAEConfig":
        stride = 2**self.halvings
        if self.height % stride or self.width % stride:
            fitting = f"{_round_up(self.height, stride)}x{_round_up(self.width, stride)}"
            raise ValueError(
                f"an image of {self.height}x{self.width} pixels is not divisible by 2^halvings = {stride}; "
                f"choose --image-size {fitting}, or fewer --halvings"
            )
        return self

    @model_validator(mode="after")
    def _levels_exist(self) -> "VQVAEConfig":
        if self.bottleneck == "fsq" and not self.fsq_levels:
            raise ValueError(f"--num-codes {self.num_codes} is no product of 2 to 8, as fsq needs; 512 is, or 1000")
        return self

    @property
    def fsq_levels(self) -> tuple[int, ...]:
        """Levels of each channel of fsq: num_codes as few factors of 8 at most, largest first; () if it has none."""
        rest, factors = self.num_codes, []
        while rest > 1:
            factor = next((f for f in range(8, 1, -1) if rest % f == 0), 0)
            if not factor:
                return ()
            factors.append(factor)
            rest //= factor
        return tuple(factors)

    @property
    def code_height(self) -> int:
        """Rows of a code map."""
        return self.height // 2**self.halvings

    @property
    def code_width(self) -> int:
        """Columns of a code map."""
        return self.width // 2**self.halvings


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
