"""Everything that defines a VQ-VAE, in one frozen, validated dataclass."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

# Bottlenecks with a term of the loss that grows with training and works against the error.
REGULARISED = ("gumbel", "gaussian", "mmd")

# Options that mean something to some bottlenecks alone.
_OWNERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "num_codes": ("vq", "gumbel", "fsq"),
        "code_dim": ("vq", "gumbel", "gaussian", "mmd", "none"),
        "codebook_rule": ("vq",),
        "unit_codes": ("vq",),
        "commitment": ("vq",),
        "ema_decay": ("vq", "gumbel", "fsq"),
        "revival_threshold": ("vq", "gumbel"),
        "revival_ends": ("vq", "gumbel"),
        "kl_weight": ("gumbel", "gaussian"),
        "mmd_weight": ("mmd",),
    }
)


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
    ema_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of the moving averages of codes [default: 0.9 to 0.99, so that a code is the mean of about "
        "200 vectors: slower ones lag behind the encoder].",
    )
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
    def _fits_together(self) -> "VQVAEConfig":
        problems = [self._untiled()]
        if self.bottleneck == "fsq" and not self.fsq_levels:
            problems.append(f"--num-codes {self.num_codes} is no product of 2 to 8, as fsq needs; 512 is, or 1000")
        if self.levels > 1 and not self.is_discrete:
            problems.append(f"--levels {self.levels} needs a discrete bottleneck, and {self.bottleneck} is continuous")
        if self.bottleneck == "vq" and self.unit_codes and self.levels > 1 and self.level_kind == "residual":
            problems.append("--unit-codes cannot code what other levels left over; choose --level-kind hierarchical")
        if self.unit_codes and self.code_dim == 1:
            problems.append("--unit-codes of --code-dim 1 are 1 and -1 alone; choose 2 or more")
        if self.adversarial and min(self.height, self.width) < 4:
            problems.append(
                f"--adversarial judges patches of 4 pixels and more; images have {self.height}x{self.width}"
            )
        if any(problems):
            raise ValueError("\n".join(filter(None, problems)))
        return self

    def _untiled(self) -> str:
        """What is wrong with the image's size, if anything."""
        stride = 2 ** (self.halvings + self._further_halvings)
        if self.height % stride == 0 and self.width % stride == 0:
            return ""
        fitting = f"{_round_up(self.height, stride)}x{_round_up(self.width, stride)}"
        needed = "2^(halvings + levels - 1)" if self._further_halvings else "2^halvings"
        return (
            f"an image of {self.height}x{self.width} pixels is not divisible by {needed} = {stride}; "
            f"choose --image-size {fitting}, or fewer --halvings or --levels"
        )

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """Of the options given those that mean nothing here, with what they belong to."""
        named = set(given)
        idle = {
            name: f"--bottleneck {' or '.join(owners)}"
            for name, owners in _OWNERS.items()
            if name in named and self.bottleneck not in owners
        }
        if self.codebook_rule == "simvq":
            idle |= dict.fromkeys(named & {"revival_threshold", "revival_ends"}, "other codebook rules")
        if not self.adversarial and "adversarial_weight" in named:
            idle["adversarial_weight"] = "--adversarial"
        if self.levels == 1 and "level_kind" in named:
            idle["level_kind"] = "--levels of 2 or more"
        return [f"--{name.replace('_', '-')} belongs to {owner}; leave it out" for name, owner in idle.items()]

    @property
    def is_discrete(self) -> bool:
        """Whether codes are integers, as stage 2 needs."""
        return self.bottleneck in ("vq", "gumbel", "fsq")

    @property
    def keeps_latest(self) -> bool:
        """Whether the latest weights are kept, not those of least error: a term of the loss works against it."""
        return self.adversarial or self.bottleneck in REGULARISED

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
        """Levels of each channel of fsq, largest first; () if there are none.

        num_codes as a product of few factors of 8 at most, the smallest of them as large as can be.
        """
        return max(_factors(self.num_codes, 8), key=lambda found: (-len(found), found[::-1]), default=())


def belongs(option: str, bottleneck: str) -> bool:
    """Whether an option means anything to a bottleneck."""
    return bottleneck in _OWNERS.get(option, (bottleneck,))


def _factors(number: int, largest: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of 2 to `largest`, in falling order."""
    if number == 1:
        return [()]
    usable = [factor for factor in range(min(largest, number), 1, -1) if number % factor == 0]
    return [(factor, *rest) for factor in usable for rest in _factors(number // factor, factor)]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
