"""Which images are learned from, how they are made alike, and into which parts they are divided."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

EMBEDDED = "digits"
ARRAY = "array"  # what config.json says of images that came as an array
NAMED = ("mnist", "fashion-mnist", "cifar10")  # torchvision's, each with an official test part

_BYTES_PER_PIXEL = 8  # of red, green, blue and opacity in 16 bits each, the most that is not compressed
_METADATA = 2**20  # bytes besides the pixels
_MARGIN = 8  # an eighth of a window: how much more is decoded for it to be moved in

_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DataConfig:
    """Which images, and how they are made alike."""

    data: str = Field(
        default=EMBEDDED,
        description="A folder of images, a .zip or .tar of one, a .parquet, a pattern of such files in quotes, or "
        f"a name: {EMBEDDED} (embedded), {', '.join(NAMED)}.",
    )
    image_size: str | None = Field(
        default=None,
        description="Height and width, as 32 or 48x32; by default the images' own where they agree.",
    )
    colour: Literal["auto", "grey", "colour"] = Field(default="auto", description="Channels; auto looks at the images.")
    crop: Literal["centre", "random"] = Field(
        default="centre",
        description="What is cut of an image: its centre, or while training a window of --image-size at random out of "
        "an eighth more.",
    )
    draft: bool = Field(
        default=True,
        description="Decode a JPEG much larger than --image-size at a half, a quarter or an eighth, which is faster.",
    )
    flip: bool = Field(default=False, description="Mirror images at random while training.")
    labels: bool = Field(default=True, description="Learn classes: the folders' names, or those beside the images.")
    label_file: str | None = Field(
        default=None,
        description="Classes from a .csv (with the header file_name,label) or a .json, in place of folders.",
    )
    validation: float = Field(
        default=0.1, gt=0, lt=1, description="Fraction of the images that chooses the best weights; never trained on."
    )
    test: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Fraction of the images that no training looks at, for evaluation alone; may be 0.",
    )
    test_data: str | None = Field(
        default=None,
        description="An official test part in place of --test: a folder, a .zip, or a name "
        f"({', '.join(NAMED)}: the test part of that data set).",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error", description="What to do with a file that cannot be read, or is unlike the others."
    )
    max_pixels: int = Field(
        default=89_478_485,
        gt=0,
        description="An image of more pixels, or a file of more than 8 bytes for each of them (and 1 MiB), is bad.",
    )
    memory_gib: float = Field(
        default=2.0,
        ge=0,
        description="Decoded images above this size live in a memory-mapped file in the cache.",
    )

    @field_validator("data", "image_size", "test_data", "label_file", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | Path) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = {"data": self.data, "test-data": self.test_data}
        empty = [name for name, value in named.items() if value is not None and not value.strip()]
        problems = [f"--{name} is empty; name a folder, a .zip or a data set" for name in empty]
        impossible = [name for name, value in named.items() if value is not None and "\0" in value]
        problems += [f"--{name} holds a NUL character, which no path does" for name in impossible]
        if self.image_size is not None and (not _SIZE.fullmatch(self.image_size) or 0 in self.size()):
            problems.append(f"--image-size takes a number of pixels or HEIGHTxWIDTH; got {self.image_size!r}")
        if self.image_size is None and self.crop == "random":
            problems.append(
                "--crop random cuts windows of --image-size out of larger images, and without one they would be whole "
                "images; give --image-size, or --crop centre"
            )
        problems += self._label_file_problems()
        if self.validation + self.test_fraction >= 1:
            problems.append(
                f"--validation {self.validation} and --test {self.test} leave no image to train on; choose smaller ones"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _label_file_problems(self) -> list[str]:
        if self.label_file is None:
            return []
        problems = []
        if Path(self.label_file).suffix.lower() not in (".csv", ".json"):
            problems.append(f"--label-file takes a .csv or a .json; got {self.label_file!r:.200}")
        if not self.labels:
            problems.append("--label-file gives classes, and --no-labels leaves them out; give one of them")
        if self.data in (EMBEDDED, ARRAY, *NAMED):
            problems.append(f"--label-file gives classes to files by their names, and {self.data} has none of files")
        return problems

    @property
    def test_fraction(self) -> float:
        """The fraction of these images that is set aside for testing: none where there is an official test part."""
        return 0.0 if self.test_data is not None else self.test

    @property
    def max_bytes(self) -> int:
        """How many bytes a file of an image may have."""
        return _BYTES_PER_PIXEL * self.max_pixels + _METADATA

    def without_effect(self, given: set[str]) -> list[str]:
        """Of the options given those that mean nothing here."""
        idle = self.test_data is not None and "test" in given
        return [f"--test belongs to runs without --test-data {self.test_data}; leave it out"] if idle else []

    def size(self) -> tuple[int, int]:
        """Height and width asked for. Call it only where `image_size` is given."""
        match = _SIZE.fullmatch(self.image_size or "")
        assert match
        return int(match[1]), int(match[2] or match[1])

    def with_margin(self, window: tuple[int, int]) -> tuple[int, int]:
        """Height and width that images are decoded to, for windows of this height and width to be cut out of them."""
        if self.crop == "centre":
            return window
        height, width = (side + -(-side // _MARGIN) for side in window)
        return height, width

    @property
    def draft_side(self) -> int | None:
        """The pixels that a side of a JPEG has at least once it is decoded smaller than it is; None where none is.

        Twice those wanted, on whichever side: the resizing to them then averages over enough.
        """
        return 2 * max(self.with_margin(self.size())) if self.draft and self.image_size is not None else None
