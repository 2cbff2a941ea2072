"""Everything that defines a prior, in one frozen, validated dataclass."""

from collections.abc import Iterable
from typing import Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

PriorName = Literal["pixelcnn", "pixelsnail", "transformer"]

_ONLY: dict[str, tuple[PriorName, ...]] = {  # the priors that an option means something to
    "kernel": ("pixelcnn", "pixelsnail"),
    "attention_every": ("pixelsnail",),
    "attention_heads": ("pixelsnail", "transformer"),
}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PriorConfig:
    """The architecture of a prior over one level of codes.

    The fields that come from stage 1 and the data stand first; every other field is a command-line option.
    """

    height: int = Field(
        default=8, ge=1, le=2**15, description="Rows of a code map.", json_schema_extra={"from_data": True}
    )
    width: int = Field(
        default=8, ge=1, le=2**15, description="Columns of a code map.", json_schema_extra={"from_data": True}
    )
    num_codes: int = Field(
        default=512,
        ge=2,
        le=2**24,
        description="Number of codes of the level, K.",
        json_schema_extra={"from_data": True},
    )
    num_classes: int = Field(
        default=0,
        ge=0,
        le=2**20,
        description="Number of classes to condition on; 0 for none.",
        json_schema_extra={"from_data": True},
    )
    coarser: tuple[int, ...] = Field(
        default=(),
        description="Number of codes of each coarser level, coarsest first.",
        json_schema_extra={"from_data": True},
    )
    normalisation: Literal["layer", "rms"] = Field(
        default="layer",
        description="What a transformer normalises with: rms in runs of format 6, layer in later ones.",
        json_schema_extra={"from_data": True},
    )
    prior: PriorName = Field(
        default="pixelcnn",
        description="Network: pixelcnn, two stacks of gated causal convolutions; pixelsnail, gated residual blocks "
        "with causal attention; transformer, attention and perceptrons after one window of neighbours.",
    )
    hidden: int = Field(default=128, ge=1, le=2**14, description="Channels of every layer.")
    layers: int = Field(
        default=10, ge=1, le=512, description="Number of layers: gated ones, or blocks of the transformer."
    )
    kernel: int = Field(
        default=3,
        ge=3,
        le=1023,
        description="Kernel size of the layers, odd; only the causal part of a kernel has weights.",
    )
    first_kernel: int = Field(default=7, ge=3, le=1023, description="Kernel size of the first layer, odd.")
    head: int = Field(default=256, ge=1, le=2**16, description="Channels between the last layer and the logits.")
    attention_every: int = Field(
        default=4,
        ge=1,
        le=512,
        description="Gated layers per attention layer; an attention layer also follows the last one.",
    )
    attention_heads: int | None = Field(
        default=None,
        ge=1,
        le=2**14,
        description="Heads; all share one set of keys and values (multi-query attention) "
        "[default: one for every 16 channels].",
    )
    condition_blocks: int = Field(
        default=2, ge=0, le=512, description="Residual blocks of the network that reads the coarser levels."
    )
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="Dropout rate in every layer: from 0.1 (much data) to 0.5 (little data)."
    )
    code_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Probability that a training step hides a code from all later positions."
    )
    label_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability that a training step hides the class of an image; guidance needs more than 0.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "PriorConfig":
        kernels = {"kernel": self.kernel, "first_kernel": self.first_kernel}
        even = [f"{name} = {size}" for name, size in kernels.items() if size % 2 == 0]
        problems = [f"a causal window has a centre, so its size is odd; got {', '.join(even)}"] if even else []
        if self.prior != "pixelcnn" and self.hidden % self.heads:
            problems.append(f"--hidden {self.hidden} is not divisible by --attention-heads {self.attention_heads}")
        elif self.prior == "transformer" and self.hidden // self.heads % 4:
            problems.append(
                f"a head of the transformer has a multiple of 4 channels; --hidden {self.hidden} over {self.heads} "
                f"heads is {self.hidden // self.heads}: choose another --hidden, or --attention-heads"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """One message for each of the given options that has no effect on this prior."""
        named = set(given)
        only = {name: owners for name, owners in sorted(_ONLY.items()) if name in named and self.prior not in owners}
        idle = {name: f"--prior {' and '.join(owners)}" for name, owners in only.items()}
        if not self.coarser and "condition_blocks" in named:
            idle["condition_blocks"] = "levels that have a coarser one"
        if not self.num_classes and "label_dropout" in named:
            idle["label_dropout"] = "data with classes"
        return [f"--{name.replace('_', '-')} belongs to {owner}; leave it out" for name, owner in idle.items()]

    @property
    def can_be_guided(self) -> bool:
        """Whether the prior knows images with their class and without, as guidance needs."""
        return self.num_classes > 0 and self.label_dropout > 0

    @property
    def heads(self) -> int:
        """Attention heads: as configured, or as many as divide the channels into parts of 16 or a little more."""
        divisors = [count for count in range(1, max(1, self.hidden // 16) + 1) if self.hidden % count == 0]
        return self.attention_heads or divisors[-1]

    @property
    def positions(self) -> int:
        """Number of codes of a map."""
        return self.height * self.width

    @property
    def reach(self) -> int | None:
        """How many rows up and columns to the left the logits of a position depend on; None for no limit."""
        if self.prior != "pixelcnn":
            return None
        return self.first_kernel // 2 + (self.layers - 1) * (self.kernel // 2)
