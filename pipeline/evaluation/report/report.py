"""What a run is, in one HTML file: `report()`, which `gen report` calls."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import processes
from pipeline.errors import GenError, UsageError
from pipeline.evaluation.parts import Source
from pipeline.evaluation.report.blocks import Missing, RunPage, Section
from pipeline.evaluation.report.charts import check_can_draw
from pipeline.evaluation.report.curves import training_sections
from pipeline.evaluation.report.page import render
from pipeline.evaluation.report.records import RunRecord, read_record
from pipeline.evaluation.report.shown import shown_of
from pipeline.evaluation.report.stage1 import stage1_sections
from pipeline.evaluation.report.stage2 import stage2_sections
from pipeline.evaluation.report.tables import commands_section, evaluation_section, facts_section
from pipeline.evaluation.report.verdict.signs import signs_of
from pipeline.evaluation.report.verdict.verdict import verdict
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.resources import check_writable
from pipeline.runs.layout import REPORT, is_finished
from pipeline.runs.opening import open_run
from pipeline.runs.published.names import folder_of, published_name
from pipeline.runs.saved import codes_in_words, images_in_words
from pipeline.sampling.model import load
from pipeline.sampling.options import differing_hashes
from pipeline.storage import atomic_file, check_paths
from pipeline.training.launch import Launch

_MOST_RUNS = 2


def report(
    *runs: str | Path | None,
    out: str | Path | None = None,
    data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write what a run is into one HTML file that needs nothing else: RUN/report.html, or a new file `out`.

    Without `runs`, the newest; two are shown side by side, and need `out`. `data`, or `images` with `targets`: where
    the images are now, if not where they were. What there is not, such as images that have gone or a stage that is
    unfinished, has a sentence in its place. Raises GenError.
    """
    for run in runs:
        check_paths(run=run, data=data, out=out)
    check_can_draw()
    launch = Launch({}, processes.start(), reporter or reporter_for_api(), None)
    asked = runs or (None,)
    if out is None and (published := next((run for run in runs if run is not None and published_name(run)), None)):
        raise UsageError(f"{published} is a published run, which is not written into; name a file with --out")
    records = [read_record(open_run(None, "finished").folder.path if run is None else folder_of(run)) for run in asked]
    path = _path_for(records, out)
    pages = [_page(record, Source(data, None, images, targets), device, launch) for record in records]
    html = render(pages, version("gen-images"))

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as unfinished:
            unfinished.write_text(html, "utf-8", "backslashreplace")

    processes.on_main(launch.accelerator, write)
    return path


def _path_for(records: Sequence[RunRecord], out: str | Path | None) -> Path:
    """Where the page goes: that of a run is written anew, a file named by somebody is not. Raises UsageError."""
    if len(records) > _MOST_RUNS:
        raise UsageError(f"{_MOST_RUNS} runs at most stand side by side; got {len(records)}")
    if out is None and len(records) > 1:
        raise UsageError("a report of two runs belongs into neither; name a file with --out")
    path = records[0].folder.path / REPORT if out is None else Path(out)
    check_writable(path)
    if out is not None and path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {path} is no page's name; end it in .html")
    if out is not None and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists already; choose another --out")
    return path


def _page(record: RunRecord, source: Source, device: str | torch.device | None, launch: Launch) -> RunPage:
    launch.reporter.say(f"reporting on {record.folder.path}")
    model = record.settings.model
    description = (
        f"Images of {images_in_words(model)}, codes of {codes_in_words(model)}, from {record.settings.data.data}."
    )
    return RunPage(
        name=record.folder.path.name or str(record.folder.path),
        description=description,
        verdict=verdict(signs_of(record), str(record.folder.path)),
        sections=[
            facts_section(record),
            *training_sections(record),
            *_pictures(record, source, device, launch),
            commands_section(record),
        ],
    )


def _pictures(record: RunRecord, source: Source, device: str | torch.device | None, launch: Launch) -> list[Section]:
    """What the published weights make, and how good they were measured to be."""
    if not is_finished(record.folder.vqvae):
        text = "Stage 1 is unfinished: its pictures follow when it has come to its end."
        return [Section("originals", "Originals and reconstructions", [Missing("Left out", text)])]
    try:
        model = load(record.folder.path, device=device)
    except GenError as error:
        return [Section("originals", "Originals and reconstructions", [Missing("Left out", str(error))])]
    shown = shown_of(model, source, launch)
    measured = record.evaluation
    differing = differing_hashes(measured, model.vqvae, model.priors) if measured else []
    return [
        *stage1_sections(shown),
        *stage2_sections(shown, measured),
        evaluation_section(record, differing),
    ]
