"""Everything that defines a prior, in one frozen, validated dataclass."""

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PixelCNNConfig:
    """The architecture of a gated PixelCNN over one level of codes.

    The first four fields come from stage 1 and the data; every other field is a command-line option.
    """

    height: int = Field(default=8, ge=1, description="Rows of a code map.", json_schema_extra={"from_data": True})
    width: int = Field(default=8, ge=1, description="Columns of a code map.", json_schema_extra={"from_data": True})
    num_codes: int = Field(
        default=512, ge=2, description="Codes of the level, K.", json_schema_extra={"from_data": True}
    )
    num_classes: int = Field(
        default=0,
        ge=0,
        description="Classes to condition on; 0 for none.",
        json_schema_extra={"from_data": True},
    )
    hidden: int = Field(default=128, ge=1, description="Channels of each of the two stacks.")
    layers: int = Field(default=10, ge=1, description="Gated layers.")
    kernel: int = Field(default=3, ge=3, description="Side of a layer's window, odd; only its causal taps exist.")
    first_kernel: int = Field(default=7, ge=3, description="Side of the first layer's window, odd.")
    head: int = Field(default=256, ge=1, description="Channels between the last layer and the logits.")
    dropout: float = Field(
        default=0.2, ge=0, lt=1, description="Dropout in every layer: 0.1 (much data) to 0.5 (little)."
    )
    code_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Chance that a training step hides a code from what comes after it."
    )

    @model_validator(mode="after")
    def _windows_have_a_centre(self) -> "PixelCNNConfig":
        even = [f"{name} = {size}" for name, size in self._kernels().items() if size % 2 == 0]
        if even:
            raise ValueError(f"a causal window has a centre, so its side is odd; got {', '.join(even)}")
        return self

    @property
    def reach(self) -> int:
        """How many rows up and columns to the left the logits of a position depend on; no further."""
        return self.first_kernel // 2 + (self.layers - 1) * (self.kernel // 2)

    def _kernels(self) -> dict[str, int]:
        return {"kernel": self.kernel, "first_kernel": self.first_kernel}
