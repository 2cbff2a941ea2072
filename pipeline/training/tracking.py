"""Where a training is logged besides metrics.jsonl: any tracker that accelerate knows, a run of it for each network."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from jaxtyping import UInt8

from pipeline import processes
from pipeline.config.options import OptionDict, flatten, given
from pipeline.data import pixels
from pipeline.data.pictures import COLUMNS, write_picture
from pipeline.errors import UsageError
from pipeline.runs.layout import TRACKER, RunFolder
from pipeline.runs.saved import DecoderRun, PriorRun, StageRun, VQVAERun
from pipeline.storage import read_json, validated, write_json


@dataclass(frozen=True)
class _Tracked:
    """tracker.json: which run of which tracker a training is logged to, so that it goes on there when resumed."""

    log: str
    run: str


@contextmanager
def tracked(accelerator: Accelerator, run: RunFolder, stage: Path, settings: StageRun, step: int) -> Iterator[None]:
    """While it is entered, what is logged goes to the tracker that was asked for, if one was, as a run of its own.

    The main process alone has one. `step`: how many steps of the training are done already. Raises UsageError, on every
    process alike, where the tracker cannot begin.
    """

    def begin() -> None:
        for log in map(str, accelerator.log_with):
            own = _own_options(log, run, stage, step)
            project, name = _names(log, run, stage)
            try:
                accelerator.init_trackers(project, init_kwargs={log: {**own, **name}})
                if not (log == "mlflow" and "run_id" in own):  # which takes no second value of a parameter
                    for tracker in accelerator.trackers:
                        tracker.store_init_configuration(_hyperparameters(settings))
            except Exception as error:  # a library of its own each, with errors of its own
                raise UsageError(f"--log {log} cannot begin: {error or type(error).__name__}") from error
            for tracker in accelerator.trackers:
                if identity := _identity(tracker):
                    write_json(stage / TRACKER, {"log": log, "run": identity})

    try:
        processes.on_main(accelerator, begin)
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()  # else the next level's curves would be written here as well


def show_picture(accelerator: Accelerator, path: Path, images: UInt8[np.ndarray, "n c h w"], step: int) -> None:
    """Let the main process write a picture of several images, and send it to the tracker, after so many steps."""

    def show() -> None:
        write_picture(path, images)
        if accelerator.trackers:
            picture = np.asarray(pixels.grid(images, COLUMNS).convert("RGB"))
            for tracker in accelerator.trackers:
                _send(tracker, path, picture, step)

    processes.on_main(accelerator, show)


def _send(tracker: GeneralTracker, path: Path, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
    """By the method that accelerate's trackers have for images, where they have one; each takes them otherwise."""
    if tracker.name == "tensorboard":
        tracker.log_images({path.stem: picture[None]}, step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({path.stem: [picture]}, step)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({path.stem: picture}, step)
    elif tracker.name == "mlflow":
        tracker.log_artifact(str(path), f"{path.stem}/{step:09d}")


def _names(log: str, run: RunFolder, stage: Path) -> tuple[str, dict[str, str]]:
    """The name of the project, and that of the run in it where the tracker has such: the run folder's and the stage's.
    Where projects hold no named runs, each stage has a project."""
    name = str(stage.relative_to(run.path))
    if log == "tensorboard":
        return name, {}
    project = re.sub(r"[^\w.-]", "-", run.path.resolve().name)
    keys = {"wandb": "name", "mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
    if log in keys:
        return project, {keys[log]: name}
    return f"{project}-{name.replace('/', '-')}", {}


def _own_options(log: str, run: RunFolder, stage: Path, step: int) -> OptionDict:
    """What lets a tracker write into the run folder, and a resumed training go on in its run."""
    if log == "tensorboard":  # which forgets what it has of the steps that are done again
        return {"purge_step": step + 1} if step else {}
    before = _before(log, stage) if step else None
    if log == "wandb":
        return {"dir": str(run.path), "resume": "allow", **({} if before is None else {"id": before})}
    if log == "mlflow":
        return {} if before is None else {"run_id": before}
    if log == "dvclive":
        return {"dir": str(run.path / "dvclive" / stage.relative_to(run.path)), "resume": step > 0}
    return {}


def _before(log: str, stage: Path) -> str | None:
    """The tracker's run that the same training was logged to before it was interrupted."""
    path = stage / TRACKER
    if not path.exists():
        return None
    saved = validated(path, read_json(path), _Tracked)
    return saved.run if saved.log == log else None


def _identity(tracker: GeneralTracker) -> str | None:
    """How the tracker calls its run, where it can go on with it."""
    if tracker.name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.info.run_id) if tracker.name == "mlflow" else None


def _hyperparameters(settings: StageRun) -> Mapping[str, str | int | float]:
    """All options of a training that have a value, as plain numbers and words."""
    others: dict[type, tuple[str, ...]] = {
        VQVAERun: ("model", "data"),
        PriorRun: ("model", "augmentation"),
        DecoderRun: ("objective",),
    }
    parts = [getattr(settings, name) for name in (*others[type(settings)], "training")]
    options = given(flatten(*parts))
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in options.items()}
