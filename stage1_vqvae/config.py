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
    bottleneck: Literal["vq", "gumbel", "fsq", "gaussian", "mmd", "none"] = Field(
        default="vq",
        description="What makes codes. Discrete: vq, the nearest vector of a codebook; gumbel, a categorical variable "
        "relaxed by Gumbel-softmax (dVAE); fsq, channels rounded to a few levels. Continuous, without a stage 2: "
        "gaussian (VAE), mmd (Wasserstein autoencoder), none (autoencoder).",
    )
    num_codes: int = Field(default=512, ge=2, description="Codes in the codebook, K; for fsq a product of 2 to 8.")
    code_dim: int = Field(
        default=8,
        ge=1,
        description="Dimension of a code vector (4 to 16 keeps all codes in use), or numbers a position.",
    )
    codebook_rule: Literal["ema", "gradient", "simvq"] = Field(
        default="ema",
        description="How codes follow the encoder: moving averages; the paper's codebook loss; or simvq, that loss on "
        "one linear map of all codes.",
    )
    unit_codes: bool = Field(default=False, description="Scale codes of vq and encoder outputs to length 1.")
    levels: int = Field(default=1, ge=1, le=8, description="Levels of codes, of as many codes each.")
    level_kind: Literal["hierarchical", "residual"] = Field(
        default="hierarchical",
        description="Levels on grids halved once more each, coarse ones conditioning fine ones (VQ-VAE-2); or on one "
        "grid, each coding what the ones before left over.",
    )
    likelihood: Literal["mse", "gaussian", "discretized-logistic"] = Field(
        default="mse",
        description="Reconstruction loss: squared error over the data's variance, or a likelihood of pixels with a "
        "learned scale, which gives bits/dim.",
    )
    kl_weight: float | None = Field(
        default=None,
        ge=0,
        description="Of the KL term of gumbel and gaussian [default: 1 with a likelihood, which makes a bound; else "
        "0.03, what a likelihood of an error of 0.015 amounts to].",
    )
    mmd_weight: float = Field(default=1.0, ge=0, description="Of the discrepancy from N(0, I) of mmd.")
    adversarial: bool = Field(default=False, description="Add a critic of patches, since squared error blurs.")
    adversarial_weight: float = Field(default=0.02, gt=0, description="Of the critic's term.")
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
        stride = 2 ** (self.halvings + self._further_halvings)
        if self.height % stride or self.width % stride:
            fitting = f"{_round_up(self.height, stride)}x{_round_up(self.width, stride)}"
            needed = "2^(halvings + levels - 1)" if self._further_halvings else "2^halvings"
            raise ValueError(
                f"an image of {self.height}x{self.width} pixels is not divisible by {needed} = {stride}; "
                f"choose --image-size {fitting}, or fewer --halvings or --levels"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "VQVAEConfig":
        problems = []
        if self.bottleneck == "fsq" and not self.fsq_levels:
            problems.append(f"--num-codes {self.num_codes} is no product of 2 to 8, as fsq needs; 512 is, or 1000")
        if self.levels > 1 and not self.is_discrete:
            problems.append(f"--levels {self.levels} needs a discrete bottleneck, and {self.bottleneck} is continuous")
        if self.levels > 1 and self.level_kind == "residual" and self.unit_codes:
            problems.append("--unit-codes cannot code what other levels left over; choose --level-kind hierarchical")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def is_discrete(self) -> bool:
        """Whether codes are integers, as stage 2 needs."""
        return self.bottleneck in ("vq", "gumbel", "fsq")

    @property
    def values(self) -> int:
        """Numbers in an image."""
        return self.channels * self.height * self.width

    @property
    def kl_scale(self) -> float:
        """The weight of the KL term where none was asked for."""
        return (0.03 if self.likelihood == "mse" else 1.0) if self.kl_weight is None else self.kl_weight

    @property
    def _further_halvings(self) -> int:
        return self.levels - 1 if self.level_kind == "hierarchical" else 0

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each level of codes, coarsest first."""
        strides = [2 ** (self.halvings + further) for further in range(self._further_halvings, -1, -1)]
        shapes = tuple((self.height // stride, self.width // stride) for stride in strides)
        return shapes if self.level_kind == "hierarchical" else shapes * self.levels

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


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
