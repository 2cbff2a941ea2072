"""Checkpoints of a training and finished models: save, verify, load, keep the last few and the best."""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import CheckpointError
from pipeline.runs.layout import CHECKPOINTS, CONFIG, VALIDATION, WEIGHTS
from pipeline.runs.saved import StageRun, as_json
from pipeline.runs.validation import Metrics, Validation
from pipeline.storage import (
    atomic_folder,
    load_strictly,
    load_tensors,
    read_json,
    remove_folder,
    remove_unfinished,
    replaced_files,
    save_tensors,
    validated,
    verify,
    write_json,
)
from pipeline.training.loop.optimization import AdamW

_OPTIMIZER, _AVERAGE, STEP_RECORD = "optimizer.safetensors", "average.safetensors", "step.json"
_ENTRIES = {"step", "exp_avg", "exp_avg_sq"}  # of the optimizer's state of a parameter
_NAME = re.compile(r"(step|best)-\d+")


@dataclass
class StepRecord:
    """The steps of a training: how many are done, and after which one the best evaluation so far came."""

    total_steps: int
    step: int = 0
    best: Metrics | None = None
    best_step: int = 0
    skipped: int = 0  # steps that changed nothing, since their gradient was no number
    skipped_in_a_row: int = 0  # of these the latest, up to `step`


@dataclass
class TrainingState:
    """All that a training changes. `task` is a Task, whose part `network` is what is published."""

    task: nn.Module
    optimizer: AdamW
    average: AveragedModel | None
    record: StepRecord

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated and kept: the average where there is one."""
        return self.task if self.average is None else self.average.module


def save_checkpoint(checkpoints: Path, state: TrainingState, keep: int) -> None:
    """Write all state after a step, then remove all but the latest `keep` checkpoints."""
    with atomic_folder(checkpoints / f"step-{state.record.step:09d}") as folder:
        save_tensors(folder / WEIGHTS, state.task.state_dict())
        save_tensors(folder / _OPTIMIZER, optimizer_tensors(state.task, state.optimizer))
        if state.average is not None:
            save_tensors(folder / _AVERAGE, state.average.state_dict())
        write_json(folder / STEP_RECORD, asdict(state.record))
    remove_old(checkpoints, keep)


def remove_left_behind(stage: Path) -> None:
    """Remove what a command that was killed left half written in a stage's folder."""
    remove_unfinished(stage)
    remove_unfinished(stage / CHECKPOINTS)


def remove_old(checkpoints: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints."""
    for old in list_checkpoints(checkpoints)[:-keep]:
        remove_folder(old)


def load_checkpoint(folder: Path, state: TrainingState) -> None:
    """Restore all state, bit for bit, but for `total_steps`, which the run may have extended."""
    verify(folder)
    load_strictly(state.task, folder / WEIGHTS)
    if state.average is not None:
        load_strictly(state.average, folder / _AVERAGE)
    _load_optimizer(state.task, state.optimizer, load_tensors(folder / _OPTIMIZER))
    saved = validated(folder / STEP_RECORD, read_json(folder / STEP_RECORD), StepRecord)
    state.record.step = saved.step
    state.record.skipped, state.record.skipped_in_a_row = saved.skipped, saved.skipped_in_a_row
    with suppress(CheckpointError):  # a later best has replaced it, or it is damaged: the next evaluation is the best
        verify(best_folder(folder.parent, saved.best_step))
        state.record.best, state.record.best_step = saved.best, saved.best_step


def discard_after(checkpoints: Path, step: int) -> list[Path]:
    """Remove the checkpoints of steps after `step`, which a run that resumes there will do anew.

    The best weights stay until better ones are saved: they may be all that is left of a damaged run.
    """
    later = [path for path in list_checkpoints(checkpoints) if step_of(path) > step]
    for path in later:
        remove_folder(path)
    return later


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(path.name.partition("-")[2])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name))


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is undamaged, and what is wrong with newer ones."""
    complaints: list[str] = []
    for path in reversed(list_checkpoints(checkpoints)):
        try:
            verify(path)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            return path, complaints
    return None, complaints


def save_best(checkpoints: Path, state: TrainingState) -> None:
    """Keep the evaluated network of this step as the best so far, in place of any other."""
    if best_folder(checkpoints, state.record.step).exists():  # of a run that went back to an earlier step
        remove_folder(best_folder(checkpoints, state.record.step))
    with atomic_folder(best_folder(checkpoints, state.record.step)) as folder:
        save_tensors(folder / WEIGHTS, state.evaluated.get_submodule("network").state_dict())
    for old in checkpoints.glob("best-*"):
        if old != best_folder(checkpoints, state.record.step):
            remove_folder(old)


def best_folder(checkpoints: Path, step: int) -> Path:
    """Where the evaluated network of a step is, while it is the best."""
    return checkpoints / f"best-{step:09d}"


def publish(folder: Path, config: StageRun, record: StepRecord, others: list[str]) -> None:
    """Make the best weights the model of a folder. The model that is there stays until all of the new one is.

    `others` are files there that belong to the model.
    """
    assert record.best is not None
    reached = Validation(step=record.best_step, steps_done=record.step, metrics=record.best)
    best = best_folder(folder / CHECKPOINTS, record.best_step) / WEIGHTS
    with replaced_files(folder, others) as unfinished:
        with best.open("rb") as weights, (unfinished / WEIGHTS).open("wb") as copy:
            shutil.copyfileobj(weights, copy)
        write_json(unfinished / CONFIG, as_json(config))
        write_json(unfinished / VALIDATION, asdict(reached))


def optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `parameter.exp_avg` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in task.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def _load_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[Tensor, dict[str, Tensor]] = {}
    parameters = dict(task.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name not in parameters:
            raise CheckpointError(f"the optimizer's state names {name or key}, which the model does not have")
        parameter = parameters[name]
        if value.shape not in (parameter.shape, ()):
            shapes = f"is {tuple(value.shape)}, where the parameter is {tuple(parameter.shape)}"
            raise CheckpointError(f"{key} of the optimizer's state {shapes}")
        # Moments need the parameter's memory layout (channels-last): the fused AdamW walks both in memory order.
        restored = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter)
        state.setdefault(parameter, {})[entry] = restored.detach()
    if partial := [entries for entries in state.values() if entries.keys() != _ENTRIES]:
        there, needed = ", ".join(sorted(partial[0])), ", ".join(sorted(_ENTRIES))
        raise CheckpointError(f"the optimizer's state of a parameter is {there}; it has to be {needed}")
    optimizer.state.update(state)


def disk_needed(state: TrainingState, keep: int) -> int:
    """Bytes of what a training writes: `keep` checkpoints, one more meanwhile, the best weights, and the model."""
    weights = sum(tensor.nbytes for tensor in state.task.state_dict().values())
    moments = 2 * sum(parameter.nbytes for parameter in state.task.parameters())
    average = weights if state.average is not None else 0
    return (keep + 1) * (weights + moments + average) + 4 * weights
