"""Whether a stage's folder is new, to be resumed, or to be left alone; nothing is ever overwritten."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.config.options import OptionDict, Options, build, contradictions, flatten
from pipeline.config.training import TrainingConfig
from pipeline.errors import CheckpointError, UsageError
from pipeline.reporting import Reporter
from pipeline.runs.layout import CHECKPOINTS, CONFIG, IN_PROGRESS, is_finished
from pipeline.runs.saved import DecoderRun, Saved, StageRun, VQVAERun, read_config
from pipeline.runs.validation import read_validation
from pipeline.storage import read_json, verify
from pipeline.training.loop.checkpoint import STEP_RECORD, list_checkpoints, newest_checkpoint

AUTO = "auto"
BOTH_LENGTHS = "--steps and --max-minutes are two ways to say the same thing; give one of them"


# What of a training may be another on resuming: its length, and what rescues one that diverged.
MAY_CHANGE = ("steps", "patience", "learning_rate", "clip", "precision", "keep")


class NothingLeftError(UsageError):
    """A finished training that was asked to go on, and for no longer than it went."""


class DoneAlreadyError(NothingLeftError):
    """A finished training that was asked to go on as it was begun: nothing is wrong."""

    exit_code = 0


def saved_run(folder: Path, kind: type[Saved], resume: str | None, options: Options) -> Saved | None:
    """The configuration of the run to resume, with `--steps` extended; None to start anew.

    Raises UsageError when the folder is taken and `resume` is not given, or a flag contradicts what was saved.
    """
    if not (folder / IN_PROGRESS).exists() and not (folder / CONFIG).exists():
        if resume not in (None, AUTO):
            raise CheckpointError(f"{folder} holds no run to resume")
        return None
    if resume is None:
        finished = is_finished(folder)
        held = "a finished model" if finished else "an unfinished run"
        go_on = "train it further with --resume auto --steps MORE" if finished else "go on with --resume auto"
        raise UsageError(f"{folder} already holds {held}; {go_on}, or {_elsewhere(folder, kind)}")
    saved = read_config(folder, kind, IN_PROGRESS)
    free = [*MAY_CHANGE, "data", "label_file", "memory_gib"]
    free += ["max_minutes"] if saved.training.steps is None else []  # they are not steps yet
    differing: list[str] = contradictions(options, saved_options(saved), free)
    if differing:
        raise UsageError("\n".join([*differing, f"leave these flags out to resume, or {_elsewhere(folder, kind)}"]))
    if {"steps", "max_minutes"} <= options.keys():
        raise UsageError(BOTH_LENGTHS)
    return replace(saved, training=_extended(folder, saved, options))


def _elsewhere(folder: Path, kind: type[StageRun]) -> str:
    """What to do where a folder is not to be gone on with."""
    return f"delete {folder}" if kind is DecoderRun else "choose another --out"


def saved_options(saved: StageRun) -> OptionDict:
    """All options of a run, flat."""
    if isinstance(saved, DecoderRun):
        return flatten(saved.objective, saved.training)
    own = saved.data if isinstance(saved, VQVAERun) else saved.augmentation
    return flatten(saved.model, saved.training, own)


def check_free(folder: Path, resume: str | None) -> None:
    """Raise UsageError when a new run's folder has been trained into since it was looked at."""
    if resume is None and (is_finished(folder) or list_checkpoints(folder / CHECKPOINTS)):
        raise UsageError(f"another command has trained into {folder} meanwhile; go on with --resume auto")


def _extended(folder: Path, saved: Saved, options: Options) -> TrainingConfig:
    """The training as it was begun, but for what may change. Raises UsageError, NothingLeftError."""
    begun = saved.training
    asked = {name: options[name] for name in MAY_CHANGE if options.get(name) is not None}
    if asked.get("precision") == "auto":  # it was resolved when the run began
        del asked["precision"]
    (wanted,) = build({**flatten(begun), **asked}, TrainingConfig)
    finished = is_finished(folder)
    if wanted.steps is not None and wanted.steps < (begun.steps or 0):
        kind = NothingLeftError if finished else UsageError
        raise kind(f"--steps {wanted.steps} is less than the {begun.steps} steps that {folder} was started with")
    if finished:
        _check_something_left(folder, wanted, read_config(folder, type(saved)).training)
    return wanted


def _check_something_left(folder: Path, wanted: TrainingConfig, published: TrainingConfig) -> None:
    """Raise DoneAlreadyError where the finished model is already what is wanted."""
    planned, done = published.steps or 0, read_validation(folder).steps_done
    if (wanted.steps or planned) <= done:
        raise DoneAlreadyError(
            f"{folder} has done its {done} steps; to train it further, pass --steps of more than {done}"
        )
    if done < planned and (wanted.steps, wanted.patience) == (published.steps, published.patience):
        raise DoneAlreadyError(
            f"{folder} stopped early, after {done} of {planned} steps; to train it further, pass --patience 0"
        )


def checkpoint_to_resume(folder: Path, resume: str | None, reporter: Reporter) -> Path | None:
    """The checkpoint to go on from: the one named, verified, or the newest undamaged one, if there is any."""
    if resume is None:
        return None
    if resume != AUTO:
        verify(Path(resume))
        return Path(resume)
    checkpoint, complaints = newest_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None and is_finished(folder):
        raise UsageError(
            f"{folder} holds a finished model and no checkpoint to go on from, so it is left as it is; train "
            "another one elsewhere"
        )
    if checkpoint is None and complaints:
        nothing_whole = f"no checkpoint in {folder / CHECKPOINTS} is whole; bring one back, or delete them all"
        raise CheckpointError("\n".join([*complaints, nothing_whole]))
    for complaint in complaints:
        reporter.say(f"skipped: {complaint}")
    where = "from the start: there is no checkpoint yet" if checkpoint is None else f"from {checkpoint}"
    reporter.say(f"resuming {where}")
    return checkpoint


def check_left_out(resume: str | None, given: Iterable[str]) -> None:
    """Raise UsageError when what a resumed run has saved, or where it lies, is given again."""
    names = ", ".join(given)
    if resume is not None and names:
        raise UsageError(f"--resume goes on with what the run has saved; leave out {names}")


def folder_of_checkpoint(resume: str | None) -> Path | None:
    """The stage's folder that a checkpoint named by its path lies in: STAGE/checkpoints/step-..."""
    if resume in (None, AUTO):
        return None
    path = Path(str(resume)).resolve()
    if path.parent.name != CHECKPOINTS or not (path / STEP_RECORD).is_file():
        raise CheckpointError(f"{resume} is no checkpoint; one is called .../{CHECKPOINTS}/step-000000700")
    read_json(path / STEP_RECORD)
    return path.parent.parent
