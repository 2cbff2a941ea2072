"""Drawings of curves in SVG whose colours are the page's: they follow its theme, and need nothing from elsewhere."""

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UsageError
from pipeline.evaluation.report.records import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (3.7, 2.35)  # inches: about the width of a phone, so that text is not made smaller there
# Colours that nothing else has, each replaced by a variable of the page.
_INK, _FAINT = "#010203", "#010204"
_DASHES = ((0, (1, 1.5)), (0, (5, 2)))  # of marks
_SERIES = ("#010205", "#010206", "#010207", "#010208")
_VARIABLES = {_INK: "--ink", _FAINT: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES, 1)
}


class Series(NamedTuple):
    """A named curve; evaluations have points, means over steps have none."""

    name: str
    curve: Curve
    points: bool = False


class Level(NamedTuple):
    """A horizontal line to compare with."""

    name: str
    value: float


def check_can_draw() -> None:
    """Raise UsageError where the libraries that a report needs are not installed."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a report needs {error.name}: pip install 'gen-images[report]'") from error
    assert jinja2


def line_chart(
    series: Sequence[Series],
    *,
    alt: str,
    levels: Sequence[Level] = (),
    marks: Sequence[tuple[str, int]] = (),
    logarithmic: bool = False,
) -> str:
    """Curves over the steps of a training, as an <svg>. `marks`: steps with their names, as vertical lines."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = matplotlib.rc_context(
        {
            "svg.hashsalt": alt,
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # which comes with the library, to measure text by
            "font.size": 9.0,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _FAINT,
            "xtick.labelcolor": _INK,
            "ytick.labelcolor": _INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
    with style:
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        _draw(axes, series, levels, marks)
        positive = all(value > 0 for one in series for value in one.curve.values)
        if logarithmic and positive:
            axes.set_yscale("log")
            _few_ticks(axes, [value for one in series for value in one.curve.values])
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.4, columnspacing=1.2)
        drawn = io.StringIO()
        figure.savefig(
            drawn, format="svg", transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"])
        )
    return _for_page(drawn.getvalue(), alt)


def _draw(axes: "Axes", series: Sequence[Series], levels: Sequence[Level], marks: Sequence[tuple[str, int]]) -> None:
    for number, one in enumerate(series):
        marker = "o" if one.points else ""
        axes.plot(*one.curve, label=one.name, color=_SERIES[number], lw=1.4, marker=marker, ms=3)
    for number, level in enumerate(levels, len(series)):
        axes.axhline(level.value, label=level.name, color=_SERIES[number % len(_SERIES)], lw=1.2, ls=(0, (4, 2)))
    for number, (name, step) in enumerate(marks):
        axes.axvline(step, label=name, color=_INK, lw=1, ls=_DASHES[number % len(_DASHES)])
    axes.grid(axis="y", color=_FAINT, lw=0.6)
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.set_xlabel("steps")


def _few_ticks(axes: "Axes", values: Sequence[float]) -> None:
    """Numbers as people write them on a logarithmic axis, which has ten times as much above as below in places."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1,) if high - low > 2 else (1, 2, 5)
    ticks = [step * 10**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    axes.set_yticks([tick for tick in ticks if min(values) <= tick <= max(values)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _for_page(svg: str, alt: str) -> str:
    """The <svg> alone, as wide as there is room, with its colours as variables and its fonts left to the page."""
    svg = svg[svg.index("<svg") :].strip()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(alt)}">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
