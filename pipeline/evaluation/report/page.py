"""A page as HTML: one file with all that it shows in it."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.errors import ResourceError
from pipeline.evaluation.report.blocks import Block, Picture, RunPage

MOST_BYTES = 5 * 10**6  # of a page
_QUALITIES = (None, 90, 70, 40)  # of pictures, one after another until the page is small enough; None: without loss


@dataclass(frozen=True)
class Row:
    """A part of the page: the blocks of each run under one title; None of a run that has no such part."""

    name: str
    title: str
    of_runs: Sequence[Sequence[Block] | None]


def rows_of(pages: Sequence[RunPage]) -> list[Row]:
    """The sections of all runs, those of one name beside each other."""
    titles = {section.name: section.title for page in pages for section in page.sections}
    own = [{section.name: section.blocks for section in page.sections} for page in pages]
    return [Row(name, title, [blocks.get(name) for blocks in own]) for name, title in titles.items()]


def render(pages: Sequence[RunPage], version: str) -> str:
    """The page of a run, or of several side by side. Raises ResourceError where no loss makes it small enough."""
    html = ""
    for quality in _QUALITIES:
        html = _render(pages, version, quality)
        if len(html.encode()) <= MOST_BYTES:
            return html
    raise ResourceError(
        f"a report has {MOST_BYTES:,} bytes at most, and this one {len(html.encode()):,}; make one of fewer runs"
    )


def _render(pages: Sequence[RunPage], version: str, quality: int | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = lambda picture: data_uri(picture, quality)
    environment.filters["of_run"] = of_run
    environment.filters["code"] = with_code
    template = environment.get_template("report.html.jinja")
    return template.render(pages=pages, rows=rows_of(pages), version=version)


def data_uri(picture: Picture, quality: int | None) -> str:
    """A picture as a WebP in the page itself."""
    encoded = io.BytesIO()
    lossless = quality is None
    Image.fromarray(picture.pixels).save(encoded, "webp", lossless=lossless, quality=quality or 80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def with_code(text: str) -> str:
    """What stands between backticks as code; the rest as text that holds no HTML."""
    from markupsafe import Markup

    parts = [
        Markup("<code>{}</code>").format(part) if odd % 2 else Markup.escape(part)
        for odd, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def of_run(svg: str, number: int) -> str:
    """A drawing whose names are those of this run alone, as two may have drawings of the same."""
    return re.sub(r'( id="|"#|url\(#)([^")]+)', rf"\g<1>\g<2>-{number}", svg)
