"""The page itself: a tab for each thing that the run can do."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files

import gradio as gr
import numpy as np
from gradio.components import Component
from jaxtyping import UInt8
from PIL import Image

from pipeline.config.sampling import GRID_IMAGES, CompleteConfig, SampleConfig
from pipeline.evaluation.report.images import opaque
from pipeline.runs.saved import codes_in_words, images_in_words, network_in_words
from pipeline.serving.controls import chosen, image_choice, request, result, sampling_controls
from pipeline.serving.drawing import complete_image, draw
from pipeline.serving.examining import reconstruct, score_image
from pipeline.serving.pictures import data_uri, sheet
from pipeline.serving.served import Answer, Served

_DRAWN, _COMPLETIONS, _CANDIDATES = 16, 24, 64  # images at first; at most
_EXPIRES = 3600  # seconds after which pictures that were shown are removed

# Small images are enlarged as squares, and those to pick from stand in rows that need no scrolling.
STYLE = """
.gradio-container { max-width: min(72rem, 100vw) !important; min-width: 0; margin: 0 auto !important; }
.gradio-container > .main { padding-inline: 0.75rem !important; }
.tab-container button { padding-inline: 0.6rem !important; }
.words p { margin: 0.25rem 0; }
.words pre, .words pre code { white-space: pre-wrap !important; }
.gradio-container img { image-rendering: pixelated; }
.offered .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important; }
.offered .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important; grid-auto-rows: auto !important;
  gap: 4px !important; }
.offered .thumbnail-item { width: 100% !important; height: auto !important; aspect-ratio: 1 !important; }
"""


def page_of(served: Served) -> gr.Blocks:
    """The page of a run; what it cannot do has a sentence in place of a tab."""
    run = served.model.run
    name = run.name or run.folder.path.name
    with gr.Blocks(title=f"{name} - gen", analytics_enabled=False, delete_cache=(60, _EXPIRES)) as page:
        gr.Markdown(f"# {name}\n{_description(served)}")
        if served.why_no_drawing:
            gr.Markdown(served.why_no_drawing)
        with gr.Tabs(overflow_behavior="wrap"):
            if not served.why_no_drawing:
                _draw_tab(served)
                _complete_tab(served)
                _score_tab(served)
            _reconstruct_tab(served)
    return page


def _description(served: Served) -> str:
    model = served.model.vqvae.config.model
    kinds = {network_in_words(prior.config.model) for prior in served.model.priors}
    prior = f" Prior: {', '.join(sorted(kinds))}." if kinds else ""
    return (
        f"Images of {images_in_words(model)}, codes of {codes_in_words(model)}.{prior} "
        f"{served.model.run.decoder.capitalize()} decoder, on {served.model.device}."
    )


def _columns() -> tuple[gr.Column, gr.Column]:
    """What is asked for, beside the answer; below one another on a phone."""
    with gr.Row():
        return gr.Column(scale=2, min_width=280), gr.Column(scale=3, min_width=280)


def _draw_tab(served: Served) -> None:
    with gr.Tab("Draw"):
        left, right = _columns()
    with right:
        answer = result("Images, as their codes are drawn")
    with left:
        controls = {
            "n": gr.Slider(1, GRID_IMAGES, _DRAWN, step=1, label="Images"),
            "seed": _seed(SampleConfig().seed),
            **sampling_controls(served),
        }

        def work(*values: object) -> Iterator[Answer]:
            yield from draw(served, *chosen(served, controls, values))

        request("Draw", work, list(controls.values()), answer)


def _seed(default: int) -> gr.Number:
    return gr.Number(default, label="Seed", precision=0, minimum=0)


def _complete_tab(served: Served) -> None:
    with gr.Tab("Complete"):
        left, right = _columns()
    with left:
        mask = _mask(served)
        image = image_choice(served, mask, lambda read: gr.HTML(value=_painted(served, 0), image=data_uri(read)))
    with right:
        answer = result("The image, what of it is kept, and completions")
        with gr.Accordion("Options", open=False):
            controls = {**_completion_controls(), **sampling_controls(served)}

    def work(original: UInt8[np.ndarray, "c h w"] | None, painted: str, *values: object) -> Iterator[Answer]:
        yield from complete_image(served, original, painted, *chosen(served, controls, values))

    with left:
        request("Complete", work, [image, mask, *controls.values()], answer)


def _completion_controls() -> dict[str, Component]:
    defaults = CompleteConfig()
    return {
        "n": gr.Slider(1, _COMPLETIONS, defaults.n, step=1, label="Completions"),
        "candidates": gr.Slider(
            1,
            _CANDIDATES,
            defaults.candidates,
            step=1,
            label="Candidates",
            info="Draws for each completion, of which one is chosen by how well it fits what is kept after it.",
        ),
        "seed": _seed(defaults.seed),
    }


def _mask(served: Served) -> gr.HTML:
    """The image to complete, under a grid of its finest codes that are painted."""
    config, source = served.model.vqvae.config.model, files("pipeline.serving") / "mask"
    mask = gr.HTML(
        _painted(served, 0),
        html_template=(source / "mask.html").read_text(),
        css_template=(source / "mask.css").read_text(),
        js_on_load=(source / "mask.js").read_text(),
        apply_default_css=False,
        elem_id="mask",
        image="",
        height=config.height,
        width=config.width,
        columns=config.grids[-1][1],
    )
    with gr.Row():
        lower, clear = gr.Button("Lower half", size="sm"), gr.Button("Clear", size="sm")
    lower.click(lambda: _painted(served, 0.5), None, mask, queue=False)
    clear.click(lambda: _painted(served, 0), None, mask, queue=False)
    return mask


def _painted(served: Served, fraction: float) -> str:
    """A mask with so much of its lower rows painted."""
    rows, columns = served.model.vqvae.config.model.grids[-1]
    lower = round(fraction * rows)
    return "0" * ((rows - lower) * columns) + "1" * (lower * columns)


def _score_tab(served: Served) -> None:
    with gr.Tab("Score"):
        left, right = _columns()
    with right:
        answer = result("The image, and where its codes surprise")
    with left:
        image = image_choice(served, *_preview())
        request("Score", partial(score_image, served), [image], answer)


def _preview() -> tuple[gr.Image, Callable[[UInt8[np.ndarray, "c h w"]], Image.Image]]:
    """The chosen image, and what makes a picture of it."""
    seen = gr.Image(
        label="The chosen image",
        show_label=False,
        format="png",
        image_mode="RGBA",
        interactive=False,
        height=240,
        buttons=[],
    )
    return seen, lambda read: sheet(opaque(read[None]), 1)


def _reconstruct_tab(served: Served) -> None:
    levels, decoders = served.model.vqvae.config.model.levels, served.decoders
    with gr.Tab("Reconstruct"):
        left, right = _columns()
    with right:
        answer = result("The image, and what its codes keep")
    with left:
        image = image_choice(served, *_preview())
        slider = gr.Slider(1, max(2, levels), levels, step=1, label="Levels of codes", visible=levels > 1)
        decoder = gr.Radio(decoders, value=decoders[0], label="Decoder", visible=len(decoders) > 1)
        work, inputs = partial(reconstruct, served), [image, slider, decoder]
        request("Reconstruct", work, inputs, answer)
        for changed in (slider, decoder):
            changed.input(work, inputs, list(answer), concurrency_id="model", trigger_mode="always_last")
