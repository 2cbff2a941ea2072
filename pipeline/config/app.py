"""How the page of a run is served."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AppConfig:
    """Where the page is, and who may see it."""

    port: int | None = Field(
        default=None, ge=1, le=65535, description="Port on 127.0.0.1 [default: the first free one from 7860 on]."
    )
    browser: bool = Field(default=True, description="Open the page in the browser.")
    share: bool = Field(
        default=False,
        description="Also a public link for a week, through servers of Gradio's: whoever has it may use this machine.",
    )
