"""Everything that defines a VQ-VAE, in one frozen, validated dataclass."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from stage1_vqvae.objective import ObjectiveConfig

# Bottlenecks with a term of the loss that works against the error, so that the smallest error is not the best model.
REGULARISED = ("gumbel", "gaussian", "mmd")

LARGE = 64  # height and width, in pixels, from which on codes of length 1 are no default: they were no better there
SMALLEST_JUDGED = 4  # height and width, in pixels, of images that a discriminator takes
LEAST_HIDDEN = 16  # of the residual network: over two channels a norm leaves a sign alone

# Options that apply to some bottlenecks alone.
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


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class VQVAEConfig(ObjectiveConfig):
    """The architecture of a VQ-VAE, the rules of its codebook, and its losses.

    The three image fields come from the data; every other field is a command-line option.
    """

    channels: int = Field(
        default=3, ge=1, le=3, description="Channels of an image.", json_schema_extra={"from_data": True}
    )
    height: int = Field(
        default=32, ge=1, le=2**16, description="Image height, pixels.", json_schema_extra={"from_data": True}
    )
    width: int = Field(
        default=32, ge=1, le=2**16, description="Image width, pixels.", json_schema_extra={"from_data": True}
    )
    network: Literal["strided", "residual"] = Field(
        default="strided",
        description="Encoder and decoder: strided, strided convolutions and residual blocks at the resolution of the "
        "codes, for small images; residual, residual blocks at every resolution, for 64 pixels and more.",
    )
    hidden: int = Field(
        default=128,
        ge=2,
        le=2**14,
        description="Channels of the feature maps of encoder and decoder at the resolution of the codes; at finer ones "
        "there may be fewer.",
    )
    residual_blocks: int = Field(
        default=2,
        ge=0,
        le=512,
        description="Residual blocks at the resolution of the codes; with --network residual at each resolution.",
    )
    residual_channels: int = Field(
        default=32,
        ge=1,
        le=2**14,
        description="Channels inside a residual block with 3x3 kernels; with --network residual as many as outside.",
    )
    encoder_kernel: Literal[1, 3] = Field(
        default=1,
        description="Kernel size of the encoder at the resolution of the codes. With 1 a code describes its patch and "
        "little around it, and code maps are easier for a prior to learn.",
    )
    downsampling: int = Field(
        default=4,
        ge=2,
        le=256,
        description="Height and width of an image over those of its codes: a power of two.",
    )
    bottleneck: Literal["vq", "gumbel", "fsq", "gaussian", "mmd", "none"] = Field(
        default="vq",
        description="What turns encoder outputs into codes. Discrete: vq, the nearest vector of a codebook; gumbel, a "
        "categorical variable relaxed by Gumbel-softmax (dVAE); fsq, channels rounded to a few levels. Continuous, "
        "without a stage 2: gaussian (VAE), mmd (Wasserstein autoencoder), none (autoencoder).",
    )
    num_codes: int = Field(
        default=512, ge=2, le=2**24, description="Codes in the codebook, K; for fsq a product of numbers from 2 to 8."
    )
    code_dim: int | None = Field(
        default=None,
        ge=1,
        le=2**14,
        description="Dimension of a code vector; of a continuous bottleneck, numbers per position [default: 32 with "
        "--unit-codes, else 8, as more would leave codes unused].",
    )
    codebook_rule: Literal["ema", "gradient", "simvq"] = Field(
        default="ema",
        description="How code vectors follow the encoder: ema, as moving averages of its outputs; gradient, by the "
        "codebook loss; simvq, by the codebook loss on one linear map that all code vectors share.",
    )
    unit_codes: bool | None = Field(
        default=None,
        description="Scale code vectors of vq and encoder outputs to length 1 [default: where --objective is sharp and "
        "images are below 64 pixels, unless --code-dim, another --codebook-rule or residual --levels are given].",
    )
    levels: int = Field(default=1, ge=1, le=8, description="Levels of codes, each with a codebook of --num-codes.")
    level_kind: Literal["hierarchical", "residual"] = Field(
        default="hierarchical",
        description="hierarchical: each level's grid has twice the height and width of the one before, and coarse "
        "levels condition fine ones (VQ-VAE-2); residual: all levels are on one grid, and each quantizes the residual "
        "of those before.",
    )
    likelihood: Literal["mse", "gaussian", "discretized-logistic"] = Field(
        default="mse",
        description="Reconstruction loss: mse, the squared error over the data's variance; or a likelihood of pixels "
        "with a learned scale, which gives bits/dim.",
    )
    kl_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the KL term of gumbel and gaussian [default: 1 with a likelihood, so that the loss is "
        "the negative evidence lower bound; else 0.03, as of a Gaussian likelihood at an NMSE of 0.015].",
    )
    mmd_weight: float = Field(default=1.0, ge=0, description="Weight of the maximum mean discrepancy of mmd.")
    denoise: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Learn to make clean images of noisy ones: standard deviation, of pixels on [0, 1], of the noise "
        "that is added to what the encoder sees in training and validation; 0: none.",
    )
    objective: Literal["nmse", "sharp"] | None = Field(
        default=None,
        description="nmse: the squared error alone; sharp: also an adversarial loss, and what other terms are given a "
        "weight [default: sharp for images in colour with discrete codes and --likelihood mse, else nmse].",
    )
    commitment: float = Field(default=0.25, ge=0, description="Weight of the commitment loss, beta.")
    ema_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of the codebook's moving averages [default: 0.9 to 0.99, so that a code vector is the mean "
        "of about 200 encoder outputs; with more it lags behind the encoder].",
    )
    revival_threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="A code used less than this fraction of the mean is moved onto an encoder output; 0: never.",
    )
    revival_ends: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="Fraction of the training after which unused codes are no longer moved.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "VQVAEConfig":
        problems = [self._size_problem()]
        if self.network == "residual" and self.hidden < LEAST_HIDDEN:
            problems.append(
                f"--network residual needs --hidden of {LEAST_HIDDEN} or more, as it normalises each position over a "
                f"quarter of them; got {self.hidden}"
            )
        if self.bottleneck == "fsq" and not self.fsq_levels:
            problems.append(f"--num-codes {self.num_codes} is no product of 2 to 8, as fsq needs; 512 is, or 1000")
        if self.levels > 1 and not self.is_discrete:
            problems.append(f"--levels {self.levels} needs a discrete bottleneck, and {self.bottleneck} is continuous")
        if self.bottleneck == "vq" and self.unit_codes and self.levels > 1 and self.level_kind == "residual":
            problems.append("--unit-codes cannot code what other levels left over; choose --level-kind hierarchical")
        if self.unit_codes and self.dimension == 1:
            problems.append("--unit-codes of --code-dim 1 are 1 and -1 alone; choose 2 or more")
        if self.objective == "sharp" and self.adversarial_weight and min(self.height, self.width) < SMALLEST_JUDGED:
            problems.append(
                f"--objective sharp judges patches of {SMALLEST_JUDGED} pixels and more; images have "
                f"{self.height}x{self.width}"
            )
        if any(problems):
            raise ValueError("\n".join(filter(None, problems)))
        return self

    def _size_problem(self) -> str:
        """What is wrong with the downsampling or with the image size, if anything."""
        below = 2 ** (self.downsampling.bit_length() - 1)  # the largest power of two that is not greater
        if self.downsampling != below:
            return f"--downsampling {self.downsampling} is no power of two; choose {below} or {2 * below}"
        stride = self._strides[0]
        if self.height % stride == 0 and self.width % stride == 0:
            return ""
        fitting = f"{_round_up(self.height, stride)}x{_round_up(self.width, stride)}"
        refined = stride > self.downsampling
        divisor = "downsampling * 2^(levels - 1)" if refined else "--downsampling"
        remedies = [f"--image-size {fitting}"]
        remedies += ["a smaller --downsampling"] if self.downsampling > 2 else []
        remedies += ["fewer --levels"] if refined else []
        return (
            f"an image of {self.height}x{self.width} pixels is not divisible by {divisor} = {stride}; "
            f"choose {', or '.join(remedies)}"
        )

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """One message for each of the given options that has no effect here, with what it belongs to."""
        named = set(given)
        idle = {
            name: f"--bottleneck {' or '.join(owners)}"
            for name, owners in _OWNERS.items()
            if name in named and self.bottleneck not in owners
        }
        if self.network != "strided" and "residual_channels" in named:
            idle["residual_channels"] = "--network strided"
        if self.codebook_rule == "simvq":
            idle |= dict.fromkeys(named & {"revival_threshold", "revival_ends"}, "other codebook rules")
        if self.objective is not None:
            idle |= self.idle(named, "" if self.objective == "sharp" else "--objective sharp")
        if self.levels == 1 and "level_kind" in named:
            idle["level_kind"] = "--levels of 2 or more"
        return [f"--{name.replace('_', '-')} belongs to {owner}; leave it out" for name, owner in idle.items()]

    @property
    def is_discrete(self) -> bool:
        """Whether codes are integers, as stage 2 needs."""
        return self.bottleneck in ("vq", "gumbel", "fsq")

    def resolved(self) -> "VQVAEConfig":
        """The same, with the objective and the codes that its images call for, where they were not chosen."""
        large = min(self.height, self.width) >= SMALLEST_JUDGED
        sharp = self.channels == 3 and self.is_discrete and self.likelihood == "mse" and large
        objective = self.objective or ("sharp" if sharp else "nmse")
        small = min(self.height, self.width) < LARGE
        free = self.bottleneck == "vq" and self.code_dim is None and self.codebook_rule == "ema"
        one_grid = self.levels > 1 and self.level_kind == "residual"  # what is left over has a length of its own
        unit = objective == "sharp" and small and free and not one_grid
        chosen = replace(self, objective=objective, unit_codes=unit if self.unit_codes is None else self.unit_codes)
        return replace(chosen, code_dim=chosen.dimension)

    @property
    def dimension(self) -> int:
        """The dimension of a code vector, or of a continuous bottleneck at a position: `code_dim`, or its default."""
        return self.code_dim or (32 if self.unit_codes else 8)

    @property
    def keeps_latest(self) -> bool:
        """Whether to keep the latest weights, not those of the smallest error: a term of the loss works against it."""
        return self.objective == "sharp" or self.bottleneck in REGULARISED

    @property
    def values(self) -> int:
        """Pixel values of an image: channels * height * width."""
        return self.channels * self.height * self.width

    @property
    def kl_scale(self) -> float:
        """The weight of the KL term: `kl_weight`, or its default."""
        return (0.03 if self.likelihood == "mse" else 1.0) if self.kl_weight is None else self.kl_weight

    @property
    def _strides(self) -> list[int]:
        """Height of an image over that of each level's codes, coarsest first."""
        hierarchical = self.level_kind == "hierarchical"
        return [self.downsampling * (2**level if hierarchical else 1) for level in reversed(range(self.levels))]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each level of codes, coarsest first."""
        return tuple((self.height // stride, self.width // stride) for stride in self._strides)

    @property
    def fsq_levels(self) -> tuple[int, ...]:
        """Number of levels of each channel of fsq, largest first; () if there are none.

        They multiply to num_codes: as few factors as possible, each of 8 at most, the smallest as large as possible.

        >>> VQVAEConfig(bottleneck="fsq", num_codes=1000).fsq_levels
        (8, 5, 5, 5)
        """
        return max(_factors(self.num_codes, 8), key=lambda found: (-len(found), found[::-1]), default=())


def applies_to(option: str, bottleneck: str) -> bool:
    """Whether an option has any effect with a bottleneck."""
    return bottleneck in _OWNERS.get(option, (bottleneck,))


def _factors(number: int, largest: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of 2 to `largest`, in falling order."""
    if number == 1:
        return [()]
    usable = [factor for factor in range(min(largest, number), 1, -1) if number % factor == 0]
    return [(factor, *rest) for factor in usable for rest in _factors(number // factor, factor)]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
