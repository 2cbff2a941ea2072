"""The one training loop. It serves both stages through `Task` and `TrainingData`.

A step is a function of the state before it and of (seed, step): the batch, its micro-batches, their noise and the
codebook's choices all follow from these, whatever the number of processes and whether the run was resumed.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, cast

import torch
from accelerate import Accelerator
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline import processes
from pipeline.config.training import TrainingConfig, evaluations_since, is_due, learning_rate
from pipeline.errors import DivergedError
from pipeline.interruption import Interruption
from pipeline.randomness import BatchIndices, Purpose, batch_indices, generator, number
from pipeline.reporting import Reporter
from pipeline.runs.layout import CHECKPOINTS, WEIGHTS
from pipeline.runs.validation import Metrics
from pipeline.training.loop.checkpoint import (
    StepRecord,
    TrainingState,
    best_folder,
    discard_after,
    load_checkpoint,
    remove_old,
    save_best,
    save_checkpoint,
)
from pipeline.training.loop.interval import SaveInterval
from pipeline.training.loop.log import SKIPPED, Log
from pipeline.training.loop.optimization import (
    clear_moments,
    clip_gradients,
    make_optimizer,
    move_average,
    take_step,
    unchanged_unless,
)
from pipeline.training.loop.read_ahead import ReadAhead
from pipeline.training.loop.task import Batch, ReportedT, Task, TaskOutput, TrainingData

LOGGED_LINES = 200  # lines of metrics.jsonl over a run, about
POOLED_BATCHES = 4  # batches that a task may initialise itself from


class StepResult(NamedTuple, Generic[ReportedT]):
    """The metrics of one micro-batch or step, and what `update` of its task takes."""

    metrics: Mapping[str, Tensor]
    statistics: Sequence[ReportedT]


class Ended(NamedTuple):
    """How a run of the loop ended: by a signal (0 for none), early since nothing became better, or at its last step."""

    signal_number: int
    early: bool


@dataclass
class Trainer(Generic[Batch, ReportedT]):
    """A training run of one network. `preview` is called after each evaluation on every process, `logged` with the
    number of steps done whenever metrics were written. `begin`, if given, fills weights of a new run, before the task's
    own `initialise`."""

    task: Task[Batch, ReportedT]
    data: TrainingData[Batch]
    config: TrainingConfig
    accelerator: Accelerator
    folder: Path
    reporter: Reporter
    preview: Callable[[nn.Module], None]
    logged: Callable[[int], None] = lambda step: None
    begin: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.device: torch.device = self.accelerator.device
        assert isinstance(self.task, nn.Module)
        self.module: nn.Module = self.task.to(self.device).to(memory_format=torch.channels_last)
        decay = self.config.average_decay
        average = AveragedModel(self.module) if decay else None
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.module)
        record = StepRecord(self.config.steps or 0)
        self.state = TrainingState(self.module, make_optimizer(self.task, self.module, self.config), average, record)
        self.checkpoints = self.folder / CHECKPOINTS
        self._read_ahead: ReadAhead[Batch] = ReadAhead(self._batches, self.device)

    def start(self) -> None:
        """Let `begin` fill weights, and the task fit itself to a few batches; give every process the same result."""
        if self.begin is not None:
            self.begin()
        batches = [self.training_batch(self._batch_indices(step)) for step in range(POOLED_BATCHES)]
        with torch.no_grad(), self.autocast():
            self.task.initialise(batches, generator(self.config.seed, Purpose.CODEBOOK, device=self.device))
        for tensor in self.module.state_dict().values():
            if self.accelerator.num_processes > 1:
                torch.distributed.broadcast(tensor, 0)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; later ones, if any, are removed, and old ones that a killed process left."""
        load_checkpoint(checkpoint, self.state)
        self._discard_after(self.state.record.step)
        processes.on_main(self.accelerator, lambda: remove_old(self.checkpoints, self.config.keep))

    def _discard_after(self, step: int) -> None:
        def discard() -> None:
            for path in discard_after(self.checkpoints, step):
                self.reporter.say(f"removed {path}, which lies ahead of where this run goes on")

        processes.on_main(self.accelerator, discard)

    def set_steps(self, config: TrainingConfig) -> None:
        """Settle how many steps there are; schedules follow."""
        self.config = config
        self.state.record.total_steps = config.steps or 0

    def run(self) -> Ended:
        """Train to the end, or until a signal, after which the state is saved. Raises DivergedError."""
        record = self.state.record
        log = Log(self.accelerator, self.reporter, self.folder, self.config, record)
        interval, due = SaveInterval(self.accelerator), False
        with (
            own_random_numbers(self.device),
            contextlib.closing(self._read_ahead),
            Interruption(self.accelerator) as interruption,
        ):
            last = record.step if self._is_overfit() else record.total_steps
            name = f"prior/{self.folder.name}" if self.folder.name.isdigit() else self.folder.name
            for step in self.reporter.steps(range(record.step, last), name):
                log.add(self.train_step(step).metrics)
                record.step = step + 1
                if is_due(LOGGED_LINES, record.step, record.total_steps):
                    log.write()
                    self.logged(record.step)
                if is_due(self.config.evaluations, record.step, record.total_steps):
                    log.write()
                    self._evaluate_and_keep(log)
                signal_number, early = interruption.agreed(record.step), self._is_overfit()
                due |= is_due(self.config.checkpoints, record.step, record.total_steps) | interval.is_due(record.step)
                ends = bool(signal_number) or early or record.step == last
                if ends or due:
                    log.write()
                    if ends or not record.skipped_in_a_row:  # else these weights may be lost: after a step that counts
                        self._save()
                        interval.begin()
                        due = False
                if signal_number or early:
                    return Ended(signal_number, early)
            if not self._best_is_there():
                self.reporter.say("the best weights are not on the disk any more: the latest are kept in their place")
                record.best = None
                self._evaluate_and_keep(log)
        return Ended(0, self._is_overfit())

    def _best_is_there(self) -> bool:
        """Whether the best weights can be published. Somebody may have deleted them, or they were damaged."""
        record = self.state.record
        there = record.best is not None and (best_folder(self.checkpoints, record.best_step) / WEIGHTS).is_file()
        return processes.true_on_all(self.accelerator, there)

    def _is_overfit(self) -> bool:
        """Whether the best evaluation lies too far back: a function of the step record, as on resuming."""
        record, patience = self.state.record, self.config.patience
        if not patience or self.task.selection_metric is None or not record.best or record.step == record.total_steps:
            return False
        since = evaluations_since(self.config, record.best_step, record.step, record.total_steps)
        return since >= patience and is_due(self.config.evaluations, record.step, record.total_steps)

    def train_step(self, step: int) -> StepResult[ReportedT]:
        """One step over the whole batch: forward and backward by micro-batches, optimizer, update, average.

        A step whose loss or gradient is no number changes nothing of all this.
        """
        state, progress = self.state, step / self.state.record.total_steps
        result = self._accumulate(step, progress)
        norm = clip_gradients(self.task, self.module, self.config.clip)
        counts = self._counts(norm, result.metrics["loss"])
        take_step(state.optimizer, learning_rate(self.config, step, state.record.total_steps), counts)
        noise = generator(self.config.seed, Purpose.CODEBOOK, step + 1, device=self.device)
        statistics = self._over_processes(result.statistics)
        with unchanged_unless(counts, self.task.updated):
            resets = self.task.update(statistics, progress, noise)
        for reset in resets:
            clear_moments(state.optimizer, reset.parameter, reset.rows & counts)
        if state.average is not None:
            move_average(state.average, self.module, self.config.average_decay, step, counts)
        # The norm is kept as a metric: it is the first to tell that the weights are about to be lost.
        return StepResult({**result.metrics, "gradient_norm": norm, SKIPPED: ~counts}, result.statistics)

    def _counts(self, *values: Tensor) -> Bool[Tensor, ""]:
        """Whether these are numbers on every process: a step that anywhere has none counts nowhere."""
        strange = ~torch.stack(values).isfinite().all()
        if self.accelerator.num_processes > 1:
            strange = self.accelerator.reduce(strange.float(), "sum") > 0
        return ~strange

    def _accumulate(self, step: int, progress: float) -> StepResult[ReportedT]:
        """Gradients of the mean loss over this process's micro-batches (DDP takes the mean over processes)."""
        batches, results = self._read_ahead.of_step(step, self.state.record.total_steps - 1), []
        own, first = len(batches), self._first_part
        for part, batch in enumerate(batches, first):
            torch.manual_seed(number(self.config.seed, Purpose.TRAINING_NOISE, step, part))
            is_last = part == first + own - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                with self.autocast():
                    output: TaskOutput[ReportedT] = self.wrapped(batch, progress)
                torch.autograd.backward(output.loss / own)
            results.append(StepResult({"loss": output.loss.detach(), **output.metrics}, output.statistics))
        names = results[0].metrics
        metrics = {name: torch.stack([result.metrics[name] for result in results]).mean() for name in names}
        return StepResult(metrics, [_add_up(same) for same in zip(*(r.statistics for r in results), strict=True)])

    @property
    def _first_part(self) -> int:
        """The number of this process's first micro-batch."""
        return self.accelerator.process_index * (self.config.micro_batches or 1) // self.accelerator.num_processes

    def _batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step."""
        indices, parts = self._batch_indices(step), self.config.micro_batches or 1
        size, own = self.config.batch_size // parts, parts // self.accelerator.num_processes
        starts = [part * size for part in range(self._first_part, self._first_part + own)]
        return [
            self.training_batch(BatchIndices(indices.items[start : start + size], indices.epochs[start : start + size]))
            for start in starts
        ]

    def _over_processes(self, statistics: Sequence[ReportedT]) -> list[ReportedT]:
        if self.accelerator.num_processes == 1:
            return list(statistics)
        reduce, gather = self.accelerator.reduce, self.accelerator.gather
        return [own._replace(sums=reduce(own.sums, "sum"), samples=gather(own.samples)) for own in statistics]

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """What the kept weights reach over the whole validation part, divided over the processes."""
        module = self.state.evaluated
        task = cast(Task[Batch, ReportedT], module)  # the average is a copy of the task, which torch calls a Module
        module.eval()
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        totals: dict[str, Tensor] = {}
        for batch in self.data.validation_batches(rank, world_size, self.device):
            with self.autocast():
                sums = task.evaluate(batch)
            totals = {name: value + totals.get(name, 0) for name, value in sums.items()}
        module.train()
        summary = task.summarise({name: self.accelerator.reduce(total, "sum") for name, total in totals.items()})
        return Metrics(dict(summary.values), tuple(dict(level) for level in summary.levels))

    def _evaluate_and_keep(self, log: Log) -> None:
        result, record, metric = self.evaluate(), self.state.record, self.task.selection_metric
        if not all(math.isfinite(value) for value in result.named().values()):
            raise DivergedError(
                f"the evaluation after step {record.step} gave {result.brief()}; go on from an earlier checkpoint with "
                f"--resume auto and a smaller --learning-rate (it is {self.config.learning_rate})"
            )
        log.line({f"validation_{name}": value for name, value in result.named().items()})
        self.reporter.say(f"step {record.step:,}, validation: {result.brief()}")
        if record.best is None or metric is None or result.values[metric] < record.best.values[metric]:
            record.best, record.best_step = result, record.step
            processes.on_main(self.accelerator, lambda: save_best(self.checkpoints, self.state))
        self.show_preview()

    def show_preview(self) -> None:
        """Let the stage make its picture with the evaluated weights."""
        with torch.no_grad(), self.autocast():
            self.state.evaluated.eval()
            self.preview(self.state.evaluated)
            self.state.evaluated.train()

    def _save(self) -> None:
        keep = self.config.keep
        processes.on_main(self.accelerator, lambda: save_checkpoint(self.checkpoints, self.state, keep))

    def _batch_indices(self, step: int) -> BatchIndices:
        return batch_indices(self.config.seed, step, self.config.batch_size, self.data.population)

    def training_batch(self, indices: BatchIndices) -> Batch:
        """The items of these indices, on the device."""
        return self.data.training_batch(indices, self.device)

    def autocast(self) -> torch.autocast:
        """The precision of the matrix products of this training."""
        return processes.autocast(self.config.precision, self.device)


def _add_up(parts: Sequence[ReportedT]) -> ReportedT:
    sums = torch.stack([part.sums for part in parts]).sum(0)
    return parts[0]._replace(sums=sums, samples=torch.cat([part.samples for part in parts]))


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seed torch's global generators freely, and leave the caller's as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
