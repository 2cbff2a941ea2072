"""The one training loop. It serves both stages through `Task` and `TrainingData`.

A step is a function of the state before it and of (seed, step): the batch, its micro-batches, their noise and the
codebook's choices all follow from these, whatever the number of processes and whether the run was resumed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline import processes
from pipeline.checkpoint import Progress, TrainingState, discard_after, load_checkpoint, save_best, save_checkpoint
from pipeline.errors import InterruptedRunError
from pipeline.health import brief
from pipeline.interruption import Interruption
from pipeline.log import Log
from pipeline.randomness import Places, Purpose, batch_places, generator, number
from pipeline.reporting import Reporter
from pipeline.run import resuming
from pipeline.settings import TrainingConfig, evaluations_since, is_due, learning_rate

LOGGED_LINES = 200  # lines of metrics.jsonl over a run, about
POOLED_BATCHES = 4  # batches that a task may initialise itself from


class Statistics(Protocol):
    """What a step reports for `update`, a NamedTuple: `sums` are added up, `samples` joined, over the batch."""

    @property
    def sums(self) -> Tensor: ...
    @property
    def samples(self) -> Tensor: ...
    def _replace(self, *, sums: Tensor, samples: Tensor) -> "Statistics": ...


class Task(Protocol):
    """What a stage gives the loop; also an nn.Module, whose `forward(batch, progress)` runs under DDP.

    `forward` returns an object with `loss`, `metrics` and `statistics`, as many in every step.
    """

    @property
    def undecayed(self) -> Sequence[nn.Parameter]: ...
    @property
    def adversaries(self) -> Sequence[nn.Parameter]: ...
    def initialise(self, batches: Sequence[Any], generator: torch.Generator) -> None: ...
    def update(self, statistics: Any, progress: float, generator: torch.Generator) -> Sequence[Any]: ...
    def evaluate(self, batch: Any) -> dict[str, Tensor]: ...
    def summarise(self, sums: dict[str, Tensor]) -> dict[str, float]: ...


class TrainingData(Protocol):
    """Where batches come from. A batch is a function of its places."""

    @property
    def population(self) -> int: ...
    def training_batch(self, places: Places, device: torch.device) -> Any: ...
    def held_out_batches(self, share: int, shares: int, device: torch.device) -> Iterator[Any]: ...


class StepResult(NamedTuple):
    """The metrics of one micro-batch or step, and what its task wants to be told of in `update`."""

    metrics: dict[str, Tensor]
    statistics: Sequence[Statistics]


@dataclass
class Trainer:
    """A training run of one network.

    `metric` names the held-out value whose lowest wins, or is None and the latest does; `preview` is called after each
    evaluation on every process.
    """

    task: Any
    data: TrainingData
    config: TrainingConfig
    accelerator: Accelerator
    folder: Path
    reporter: Reporter
    metric: str | None
    preview: Callable[[nn.Module], None]

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.task.to(self.device, memory_format=torch.channels_last)
        decay = self.config.average_decay
        average = AveragedModel(self.task, multi_avg_fn=_warmed_up(decay)) if decay else None
        self.module = self.accelerator.prepare_model(self.task)
        self.state = TrainingState(self.task, self._optimizer(), average, Progress(self.config.steps or 0))
        self.checkpoints = self.folder / "checkpoints"

    def _optimizer(self) -> torch.optim.AdamW:
        spared = {id(p) for p in self.task.parameters() if p.ndim < 2} | {id(p) for p in self.task.undecayed}
        groups = [
            {
                "params": [p for p in self.task.parameters() if id(p) not in spared],
                "weight_decay": self.config.weight_decay,
            },
            {"params": [p for p in self.task.parameters() if id(p) in spared], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, self.config.beta2), fused=True)

    def start(self) -> None:
        """Let the task fit itself to a few batches, and give every process the same result.

        Whatever a run that ended before its first checkpoint left is given up.
        """
        self._give_up_after(-1)
        batches = [self._training_batch(self._places(step)) for step in range(POOLED_BATCHES)]
        with torch.no_grad(), self.autocast():
            self.task.initialise(batches, generator(self.config.seed, Purpose.CODEBOOK, device=self.device))
        for tensor in self.task.state_dict().values():
            if self.accelerator.num_processes > 1:
                torch.distributed.broadcast(tensor, 0)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; later ones, if any, are given up."""
        load_checkpoint(checkpoint, self.state)
        self._give_up_after(self.state.progress.step)

    def _give_up_after(self, step: int) -> None:
        if self.accelerator.is_main_process:
            for path in discard_after(self.checkpoints, step):
                self.reporter.say(f"removed {path}, which lies ahead of where this run goes on")
        self.accelerator.wait_for_everyone()

    def set_steps(self, config: TrainingConfig) -> None:
        """Settle how many steps there are; schedules follow."""
        self.config = config
        self.state.progress.total_steps = config.steps or 0

    def run(self) -> None:
        """Train to the end. Raises DivergedError, and InterruptedRunError on a signal."""
        progress = self.state.progress
        log = Log(self.accelerator, self.reporter, self.folder, self.config, progress)
        with own_random_numbers(self.device), Interruption(self.accelerator) as interruption:
            last = progress.step if self._is_overfit() else progress.total_steps
            for step in self.reporter.steps(range(progress.step, last), self.folder.name):
                log.add(self.train_step(step).metrics)
                progress.step = step + 1
                if is_due(LOGGED_LINES, progress.step, progress.total_steps):
                    log.write()
                if is_due(self.config.evaluations, progress.step, progress.total_steps):
                    log.write()
                    self._evaluate_and_keep(log)
                asked, ended = interruption.agreed(progress.step), self._is_overfit()
                if asked or ended or is_due(self.config.checkpoints, progress.step, progress.total_steps):
                    log.write()
                    self._save()
                if asked:
                    raise InterruptedRunError(_stopped(progress, self.folder), asked)
                if ended:
                    break
        if self._is_overfit():
            self.reporter.say(_ended_early(progress, self.config.patience, self.folder))

    def _is_overfit(self) -> bool:
        """Whether the best evaluation lies too far back: a function of where the training stands, as on resuming."""
        progress, patience = self.state.progress, self.config.patience
        if not patience or self.metric is None or not progress.best or progress.step == progress.total_steps:
            return False
        since = evaluations_since(self.config, progress.best_step, progress.step, progress.total_steps)
        return since >= patience and is_due(self.config.evaluations, progress.step, progress.total_steps)

    def train_step(self, step: int) -> StepResult:
        """One step over the whole batch: forward and backward by micro-batches, optimizer, update, average."""
        share = step / self.state.progress.total_steps
        result = self._accumulate(step, share)
        norm = self._clip()
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.state.progress.total_steps)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        noise = generator(self.config.seed, Purpose.CODEBOOK, step + 1, device=self.device)
        for reset in self.task.update(self._over_processes(result.statistics), share, noise):
            forget(self.state.optimizer, reset.parameter, reset.rows)
        if self.state.average is not None:
            self.state.average.update_parameters(self.task)
        # The norm is remembered as a metric: it is the first to tell that the weights are about to be lost.
        return result._replace(metrics={**result.metrics, "gradient_norm": norm})

    def _clip(self) -> Tensor:
        """Clip the gradient, and that of adversaries by itself: neither may throttle the other. Returns the norm."""
        against = {id(parameter) for parameter in self.task.adversaries}
        own = [parameter for parameter in self.task.parameters() if id(parameter) not in against]
        torch.nn.utils.clip_grad_norm_(self.task.adversaries, self.config.clip)
        return torch.nn.utils.clip_grad_norm_(own, self.config.clip)

    def _accumulate(self, step: int, share: float) -> StepResult:
        """Gradients of the mean loss over this process's micro-batches (DDP takes the mean over processes)."""
        places = self._places(step)
        parts = self.config.micro_batches or 1
        size, mine = self.config.batch_size // parts, parts // self.accelerator.num_processes
        first = self.accelerator.process_index * mine
        results = []
        for part in range(first, first + mine):
            torch.manual_seed(number(self.config.seed, Purpose.TRAINING_NOISE, step, part))
            chosen = slice(part * size, (part + 1) * size)
            batch = self._training_batch(Places(places.items[chosen], places.epochs[chosen]))
            last = part == first + mine - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                with self.autocast():
                    output = self.module(batch, share)
                (output.loss / mine).backward()
            results.append(StepResult({"loss": output.loss.detach(), **output.metrics}, output.statistics))
        return _join(results)

    def _over_processes(self, statistics: Sequence[Statistics]) -> list[Statistics]:
        if self.accelerator.num_processes == 1:
            return list(statistics)
        reduce, gather = self.accelerator.reduce, self.accelerator.gather
        return [own._replace(sums=reduce(own.sums, "sum"), samples=gather(own.samples)) for own in statistics]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """What the kept weights reach over the whole held-out split, shared out over the processes."""
        self.state.evaluated.eval()
        share, shares = self.accelerator.process_index, self.accelerator.num_processes
        totals: dict[str, Tensor] = {}
        for batch in self.data.held_out_batches(share, shares, self.device):
            with self.autocast():
                sums = self.state.evaluated.evaluate(batch)  # type: ignore[operator]
            totals = {name: value + totals.get(name, 0) for name, value in sums.items()}
        self.state.evaluated.train()
        whole = {name: self.accelerator.reduce(total, "sum") for name, total in totals.items()}
        return dict(self.state.evaluated.summarise(whole))  # type: ignore[operator]

    def _evaluate_and_keep(self, log: Log) -> None:
        result, progress = self.evaluate(), self.state.progress
        log.line({f"held_out_{name}": value for name, value in result.items()})
        self.reporter.say(f"step {progress.step:,}, held out: " + brief(result))
        if not progress.best or self.metric is None or result[self.metric] < progress.best[self.metric]:
            progress.best, progress.best_step = result, progress.step
            if self.accelerator.is_main_process:
                save_best(self.checkpoints, self.state)
        self.show_preview()

    def show_preview(self) -> None:
        """Let the stage make its picture with the evaluated weights."""
        with torch.no_grad(), self.autocast():
            self.state.evaluated.eval()
            self.preview(self.state.evaluated)
            self.state.evaluated.train()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, self.state, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _places(self, step: int) -> Places:
        return batch_places(self.config.seed, step, self.config.batch_size, self.data.population)

    def _training_batch(self, places: Places) -> Any:
        return self.data.training_batch(places, self.device)

    def autocast(self) -> torch.autocast:
        """The precision of the matrix products of this training."""
        return processes.autocast(self.config.precision, self.device)


def _stopped(progress: Progress, folder: Path) -> str:
    return f"stopped as asked after step {progress.step:,} of {progress.total_steps:,}; go on with `{resuming(folder)}`"


def _ended_early(progress: Progress, patience: int, folder: Path) -> str:
    return (
        f"stopped early after step {progress.step:,} of {progress.total_steps:,}: nothing was better than step "
        f"{progress.best_step:,} for {patience} evaluations; "
        f"it goes on with `{resuming(folder, alone=True)} --patience 0`"
    )


def _join(results: list[StepResult]) -> StepResult:
    metrics = {name: torch.stack([r.metrics[name] for r in results]).mean() for name in results[0].metrics}
    return StepResult(metrics, [_add_up(parts) for parts in zip(*(r.statistics for r in results), strict=True)])


def _add_up(parts: Sequence[Statistics]) -> Statistics:
    sums = torch.stack([part.sums for part in parts]).sum(0)
    return parts[0]._replace(sums=sums, samples=torch.cat([part.samples for part in parts]))


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Clear what the optimizer remembers of replaced rows of a parameter."""
    for name, value in optimizer.state[parameter].items():
        if name != "step":
            value.masked_fill_(rows.reshape(-1, *[1] * (value.ndim - 1)), 0)


def _warmed_up(decay: float) -> Callable[[Any, Any, Any], None]:
    """A moving average whose decay grows from 2/11 to `decay`, so that the first weights are soon forgotten."""

    @torch.no_grad()
    def update(averages: Any, currents: Any, num_averaged: Any) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + count) / (10 + count)))

    return update


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seed torch's global generators freely, and leave the caller's as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
