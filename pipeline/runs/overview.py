"""How far the runs of a folder are, for whoever looks on: reads, takes no lock, and names what cannot be read."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pipeline.errors import CheckpointError
from pipeline.runs.layout import IN_PROGRESS, METRICS, STATUS, RunFolder, is_finished
from pipeline.runs.status import State, Status
from pipeline.runs.validation import Metrics
from pipeline.storage import read_json, validated

_VALIDATION = "validation_"  # of the metrics in metrics.jsonl that are an evaluation's


@dataclass(frozen=True)
class Overview:
    """A run as it is seen from outside. `gone`: its process died without a word; `elsewhere`: it was begun on another
    host, which alone knows whether it still runs; `unfinished`, `finished`: of a run without a status.json."""

    run: str
    state: State | Literal["gone", "elsewhere", "unfinished", "unreadable"]
    stage: str | None = None
    step: int | None = None
    total_steps: int | None = None
    seconds_left: float | None = None
    validation: dict[str, float] | None = None  # the last evaluation of the stage, or of the latest that was trained
    since: datetime | None = None
    updated: datetime | None = None
    exit_code: int | None = None
    error: str | None = None
    command: str | None = None
    host: str | None = None
    process_id: int | None = None


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it and in the folders in it, by name."""
    if _is_run(folder):
        return [folder]
    inside = sorted(folder.glob("[!.]*"))
    return [run for path in inside for run in ([path] if _is_run(path) else sorted(path.glob("[!.]*"))) if _is_run(run)]


def overview(run: Path) -> Overview:
    """What there is to say of a run; of one that cannot be read, why."""
    try:
        if not (run / STATUS).exists():
            return _without_status(RunFolder(run))
        status = validated(run / STATUS, read_json(run / STATUS), Status)
        state: State | Literal["gone", "elsewhere"] = status.state
        is_running = status.is_running() if status.state == "running" else True
        if not is_running:
            state = "gone" if is_running is False else "elsewhere"
        return Overview(
            run=str(run),
            state=state,
            stage=status.stage,
            step=status.step,
            total_steps=status.total_steps,
            seconds_left=None if state == "gone" else status.seconds_left,
            validation=_last_validation(RunFolder(run), status.stage),
            since=status.since,
            updated=status.updated,
            exit_code=status.exit_code,
            error=status.error,
            command=status.command,
            host=status.host,
            process_id=status.process_id,
        )
    except (CheckpointError, OSError) as error:
        return Overview(str(run), "unreadable", error=str(error).splitlines()[0])


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).contains_run() or (path / STATUS).exists()
    except OSError:  # it says so in its line
        return True


def _stages(run: RunFolder) -> list[Path]:
    return [run.vqvae, *sorted(run.decoders.glob("[!.]*")), *sorted(run.priors.glob("[0-9]*"))]


def _without_status(run: RunFolder) -> Overview:
    begun = [stage for stage in _stages(run) if is_finished(stage) or (stage / IN_PROGRESS).exists()]
    stage = str(begun[-1].relative_to(run.path)) if begun else None
    finished = all(map(is_finished, begun))
    return Overview(
        str(run.path), "finished" if finished else "unfinished", stage, validation=_last_validation(run, stage or "")
    )


def _last_validation(run: RunFolder, stage: str) -> dict[str, float] | None:
    """The last evaluation in the metrics of a stage, or of the latest that has any."""
    for path in (run.path / stage, *reversed(_stages(run))):
        if not (path / METRICS).is_file():
            continue
        for line in reversed((path / METRICS).read_text(errors="replace").splitlines()):
            values = numbers_of(line)
            found = {name.removeprefix(_VALIDATION): v for name, v in values.items() if name.startswith(_VALIDATION)}
            if found:
                return found
    return None


def numbers_of(line: str) -> dict[str, float]:
    """The numbers in a line of metrics; nothing of one that is being written."""
    try:
        values = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        return {}
    numbers = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in numbers if isinstance(value, float)}


def in_words(run: Overview) -> tuple[str, ...]:
    """Columns of a line: state, stage, how far, the last evaluation and since when, or what is wrong."""
    how_far = ""
    if run.step is not None and run.total_steps:
        how_far = f"{run.step:,} of {run.total_steps:,} ({run.step / run.total_steps:.0%})"
        how_far += "" if run.seconds_left is None else f", {duration(run.seconds_left)} left"
    measured = Metrics(run.validation).brief() if run.validation else ""
    since = f"since {run.since:%Y-%m-%d %H:%M} UTC" if run.since else ""
    return (run.state, run.stage or "", how_far, measured, since, _remark(run))


def _remark(run: Overview) -> str:
    if run.state == "gone":
        return f"process {run.process_id} is no longer there, and said last at {run.updated:%Y-%m-%d %H:%M} UTC"
    if run.state == "elsewhere":
        return f"process {run.process_id} on host {run.host}, heard of last at {run.updated:%Y-%m-%d %H:%M} UTC"
    return f"exit code {run.exit_code}: {run.error}" if run.exit_code and run.error else run.error or ""


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> [duration(seconds) for seconds in (42, 600, 9000, 260000)]
    ['42 s', '10 min', '2.5 h', '3.0 days']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
