"""The parts that tabs of the page have in common: options of a drawing, the choice of an image, buttons, the answer."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.i18n import I18nData
from jaxtyping import UInt8

from pipeline.config.options import OptionDict
from pipeline.errors import GenError
from pipeline.evaluation.report.images import opaque
from pipeline.sampling.labels import BALANCED, Label
from pipeline.serving.pictures import sheet
from pipeline.serving.served import Answer, Served
from pipeline.serving.uploads import read_upload
from stage2_prior import SamplingOptions

_OFFERED, _OFFERED_COLUMNS = 16, 8  # images of the run
_LARGEST_GUIDANCE, _HOTTEST, _LEAST_TOP_P = 6.0, 2.0, 0.05  # that the sliders reach
_ANY_CLASS = ""
_SEEN_AT_ONCE = 20  # classes in the list without scrolling far
_SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"]


def sampling_controls(served: Served) -> dict[str, Component]:
    """Class and options of SamplingOptions, by name; those that mean nothing to this run are not seen."""
    names = served.model.priors[0].config.class_names
    defaults = served.model.resolve(SamplingOptions())
    assert isinstance(defaults.guidance, float) and defaults.temperature is not None
    guided = all(prior.config.model.can_be_guided for prior in served.model.priors)
    classes: list[str | int | float | tuple[str | I18nData, str | int | float]]
    classes = [("as in the data", _ANY_CLASS), ("all, in turn", BALANCED)]
    classes += [(name, number) for number, name in enumerate(names)]
    controls: dict[str, Component] = {
        "label": gr.Dropdown(classes, value=_ANY_CLASS, label="Class", info=_finding(len(names)), visible=bool(names)),
        "guidance": gr.Slider(
            0,
            max(_LARGEST_GUIDANCE, defaults.guidance),
            defaults.guidance if guided else None,
            step=0.1,
            label="Guidance",
            info="Above 1, images show their class more clearly and vary less.",
            visible=guided,
        ),
        "temperature": gr.Slider(
            0.1, _HOTTEST, defaults.temperature, step=0.05, label="Temperature", info="Below 1, more probable codes."
        ),
    }
    codes = served.model.vqvae.config.model.num_codes
    controls["top_k"] = gr.Slider(1, codes, codes, step=1, label="Top-k", info="Only the k most probable codes.")
    controls["top_p"] = gr.Slider(_LEAST_TOP_P, 1, 1, step=0.05, label="Top-p", info="The fewest codes that sum to p.")
    return controls


def _finding(classes: int) -> str | None:
    """How one of many classes is found: the list shows the first hundred of those whose name contains what is typed."""
    if classes <= _SEEN_AT_ONCE:
        return None
    return f"One of {classes:,}: clear the field and type a part of its name."


def chosen(served: Served, names: Mapping[str, Component], values: tuple[object, ...]) -> tuple[Label, OptionDict]:
    """The class, and the other options by name, of what the page sends (which Gradio does not type)."""
    options: OptionDict = dict(zip(names, values, strict=True))
    label = options.pop("label")
    all_codes = {"top_k": served.model.vqvae.config.model.num_codes, "top_p": 1}
    given = {name: value for name, value in options.items() if name not in all_codes or value != all_codes[name]}
    assert isinstance(label, str | int)
    return (None if label == _ANY_CLASS else label), given


class Result(NamedTuple):
    """Where an answer appears."""

    picture: gr.Image
    words: gr.Markdown


def result(label: str) -> Result:
    """An empty one."""
    picture = gr.Image(
        label=label, show_label=False, format="png", image_mode="RGBA", interactive=False, buttons=["download"]
    )
    return Result(picture, gr.Markdown(elem_classes="words"))


def request(name: str, work: Callable[..., Iterator[Answer]], inputs: list[Component], answer: Result) -> None:
    """Buttons that begin a request of the model and stop it."""
    with gr.Row():
        start, stop = gr.Button(name, variant="primary", scale=3), gr.Button("Stop", scale=1, min_width=80)
    event = start.click(
        work, inputs, list(answer), concurrency_id="model", concurrency_limit=1, show_progress="minimal"
    )
    stop.click(lambda: "Stopped.", None, answer.words, cancels=[event], queue=False)


def image_choice(served: Served, seen: Component, show: Callable[[UInt8[np.ndarray, "c h w"]], object]) -> gr.State:
    """A state with the image that is uploaded, or picked among those of the run; `seen` becomes what `show` makes of
    it."""
    image, said = gr.State(None), gr.Markdown(elem_classes="words")
    upload = gr.UploadButton("Upload an image", file_types=_SUFFIXES, size="md")

    def uploaded(path: str) -> tuple[object, object, str]:
        try:
            read = read_upload(Path(path), served.model.vqvae.config)
        except GenError as error:
            return gr.skip(), gr.skip(), str(error)
        return read, show(read), ""

    upload.upload(uploaded, upload, [image, seen, said])
    if served.shown.parts is None:
        gr.Markdown(served.shown.why_not)
        return image
    offered = served.shown.first(_OFFERED)
    thumbnails = [sheet(opaque(one[None]), 1) for one in offered]
    gr.Markdown(f"or pick one of {served.shown.name}:", elem_classes="words")
    gallery = gr.Gallery(
        thumbnails,
        label="Images of the run",
        show_label=False,
        elem_classes="offered",
        height="auto",
        columns=_OFFERED_COLUMNS,
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )

    def picked(event: gr.SelectData) -> tuple[object, object, str]:
        return offered[event.index], show(offered[event.index]), ""

    gallery.select(picked, None, [image, seen, said])
    return image
