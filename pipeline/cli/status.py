"""`gen status`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli.flags import say_result
from pipeline.errors import UsageError
from pipeline.runs.layout import RUNS
from pipeline.runs.overview import in_words, overview, runs_in


@click.command("status")
@click.argument("folder", required=False, default=RUNS, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run.")
def status_command(folder: Path, as_json: bool) -> None:
    """Say how far the runs in FOLDER (by default runs/), or the run FOLDER, are; also while they are at work."""
    paths = runs_in(folder)
    if not paths:
        raise UsageError(f"there is no run in {folder.resolve()}; name a run, or a folder of runs")
    runs = [overview(path) for path in paths]
    if as_json:
        for run in runs:
            say_result(json.dumps(asdict(run), default=lambda time: time.isoformat()))
        return
    names = [path.name if path == folder else str(path.relative_to(folder)) for path in paths]
    rows = [(name, *in_words(run)) for name, run in zip(names, runs, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width)
        say_result("  ".join(cells).rstrip())


COMMANDS = (status_command,)
