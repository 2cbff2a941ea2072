"""A page on which a run is tried in the browser: `app()`, which `gen app` calls."""

import importlib.util
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import Tensor

from pipeline import processes
from pipeline.config.app import AppConfig
from pipeline.config.arguments import AppArguments
from pipeline.config.options import build
from pipeline.errors import UsageError
from pipeline.evaluation.parts import Source
from pipeline.evaluation.report.shown import shown_of
from pipeline.interruption import Interruption
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.sampling.model import Model, loaded
from pipeline.serving.served import Served
from pipeline.serving.uploads import MOST_MEGABYTES
from pipeline.training.launch import Launch

if TYPE_CHECKING:
    import gradio

_HOST = "127.0.0.1"
_TEMPORARY = "GRADIO_TEMP_DIR"
_FONTS = (["system-ui", "sans-serif"], ["ui-monospace", "monospace"])  # which every machine has
# Where the theme falls short of a contrast of 4.5 to 1 (WCAG 2.2, 1.4.3): white on orange, pale grey on white
_READABLE = {
    "body_text_color_subdued": "*neutral_600",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "color_accent": "*primary_700",
}
_WAIT = 0.2  # seconds


def app(
    run: str | Path | Model | None = None,
    *,
    data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[AppArguments],
) -> None:
    """Serve a page of a run (a folder, a loaded one, or by default the newest) on 127.0.0.1 until Ctrl-C or SIGTERM.

    Drawing, completing, scoring and reconstructing, one request after another. `data`, or `images` with `targets`:
    where the run's images are now, if not where they were. What the run cannot do, or images that have gone, have a
    sentence in their place. `options` are the fields of AppConfig. Raises UsageError, also where Gradio is not
    installed or the port is in use, and CheckpointError.
    """
    (config,) = build(options, AppConfig)
    _check_can_serve(config)
    accelerator, reporter = processes.start(), reporter or reporter_for_api()
    if accelerator.num_processes > 1:
        raise UsageError(f"one process serves the page, and {accelerator.num_processes} were launched; leave one")
    model = loaded(run, "finished", device)
    served = Served(
        model, shown_of(model, Source(data, None, images, targets), Launch({}, accelerator, reporter, None))
    )
    with Interruption(accelerator) as interruption, _launched(served, config) as page:
        public = f" and {page.share_url}" if config.share else ""
        reporter.say(f"{model.run.called} is shown at {page.local_url}{public}; Ctrl-C ends it")
        while not interruption.signal_number:
            time.sleep(_WAIT)


def _check_can_serve(config: AppConfig) -> None:
    """Raise UsageError where Gradio is not installed, or the port is in use."""
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs gradio: pip install 'gen-images[app]'")
    if config.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, config.port))
        except OSError as error:
            reason = f"--port {config.port} cannot be had on {_HOST} ({error.strerror})"
            raise UsageError(f"{reason}; name another, or leave it out") from error


@contextmanager
def _launched(served: Served, config: AppConfig) -> "Iterator[gradio.Blocks]":
    """The page while it is served. What is uploaded and shown lies in a folder that is removed at the end."""
    import gradio

    with tempfile.TemporaryDirectory(prefix="gen-app-") as folder:
        before = os.environ.get(_TEMPORARY)
        os.environ[_TEMPORARY] = folder  # read where a page is made; there is no argument
        from pipeline.serving.page import STYLE, page_of

        page = page_of(served)
        try:
            page.launch(
                server_name=_HOST,
                server_port=config.port,
                inbrowser=config.browser,
                share=config.share,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                footer_links=[],
                max_file_size=MOST_MEGABYTES * 2**20,
                theme=gradio.themes.Default(font=_FONTS[0], font_mono=_FONTS[1]).set(**_READABLE),
                css=STYLE,
            )
            yield page
        finally:
            page.close(verbose=False)
            served.requests.close()
            os.environ.pop(_TEMPORARY)
            if before is not None:
                os.environ[_TEMPORARY] = before
