"""What a page is made of. It knows nothing about runs, and nothing about HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8

Emphasis = Literal["good", "limit", "unknown"]


@dataclass(frozen=True)
class Picture:
    """Pixels with transparency (height, width, 4), each shown as a square of `scale` CSS pixels at most, and what they
    show, for those who cannot see them."""

    pixels: UInt8[np.ndarray, "height width 4"]
    alt: str
    scale: int

    @property
    def width(self) -> int:
        """In CSS pixels."""
        return int(self.pixels.shape[1]) * self.scale

    @property
    def height(self) -> int:
        """In CSS pixels."""
        return int(self.pixels.shape[0]) * self.scale


@dataclass(frozen=True)
class Panel:
    """A picture with a name in front of it."""

    name: str
    picture: Picture


@dataclass(frozen=True)
class Figure:
    """Pictures one above the other, or as tiles, with a sentence that says what to expect of them and what is bad."""

    title: str
    panels: Sequence[Panel]
    sentence: str
    layout: Literal["rows", "tiles"] = "rows"
    kind: Literal["figure"] = field(default="figure", init=False)


@dataclass(frozen=True)
class Choice:
    """One position of a slider."""

    name: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Slider:
    """Figures of which one is shown at a time; all of them where scripts do not run."""

    title: str
    quantity: str
    choices: Sequence[Choice]
    chosen: int
    sentence: str
    kind: Literal["slider"] = field(default="slider", init=False)


@dataclass(frozen=True)
class Chart:
    """A drawing in SVG, and what it says in words."""

    title: str
    svg: str
    sentence: str
    kind: Literal["chart"] = field(default="chart", init=False)


@dataclass(frozen=True)
class Charts:
    """Several drawings side by side."""

    charts: Sequence[Chart]
    kind: Literal["charts"] = field(default="charts", init=False)


@dataclass(frozen=True)
class Table:
    """Rows of a name and its values, one for each column of `head` after the first."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentence: str
    numbers: bool = False  # which are aligned
    kind: Literal["table"] = field(default="table", init=False)


@dataclass(frozen=True)
class Commands:
    """What to type in a terminal to make this again."""

    title: str
    commands: Sequence[str]
    sentence: str
    kind: Literal["commands"] = field(default="commands", init=False)


@dataclass(frozen=True)
class Missing:
    """A sentence in place of what cannot be shown."""

    title: str
    sentence: str
    kind: Literal["missing"] = field(default="missing", init=False)


Block: TypeAlias = Figure | Slider | Charts | Table | Commands | Missing


@dataclass(frozen=True)
class Section:
    """A part of the page; of two runs the sections of one name stand side by side."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Line:
    """A line of the verdict: what it is about, whether it limits the model, what was found, what to try."""

    aspect: str
    emphasis: Emphasis
    finding: str
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """What limits a model, in a sentence and five lines."""

    sentence: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class RunPage:
    """All there is to say about one run."""

    name: str
    description: str
    verdict: Verdict
    sections: Sequence[Section]
