"""metrics.jsonl: means over the steps since the last line, also shown beside the bar and sent to a tracker."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline import processes
from pipeline.config.training import TrainingConfig, learning_rate
from pipeline.errors import DivergedError
from pipeline.reporting import Reporter
from pipeline.runs.layout import CHECKPOINTS, METRICS
from pipeline.storage import atomic_file, naming
from pipeline.training.loop.balance import Balance
from pipeline.training.loop.checkpoint import StepRecord

SKIPPED = "skipped"  # a metric of a step: whether it changed nothing, since its loss or gradient was no number
MOST_SKIPPED = 5  # steps in a row, after which a training stops


class Log:
    """Means over the steps since the last line, written to metrics.jsonl, the bar and the tracker."""

    def __init__(
        self, accelerator: Accelerator, reporter: Reporter, folder: Path, config: TrainingConfig, record: StepRecord
    ) -> None:
        self.accelerator, self.reporter, self.config, self.record = accelerator, reporter, config, record
        self.path = folder / METRICS
        self.pending: list[Mapping[str, Tensor]] = []
        self.since = time.perf_counter()
        self.balance = Balance(reporter, record)
        processes.on_main(accelerator, lambda: _drop_lines_after(self.path, record.step))

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Remember a step's metrics, without waiting for the device."""
        self.pending.append(metrics)

    def write(self) -> None:
        """Write the means over the steps that counted, if there are any new ones, and how many did not.

        Raises DivergedError, on every process alike, when the latest steps did not count: they were skipped, since
        their gradient was no number, and the weights are probably lost.
        """
        if not self.pending:
            return
        seconds = time.perf_counter() - self.since
        values = {name: torch.stack([metrics[name] for metrics in self.pending]) for name in self.pending[0]}
        skipped = values.pop(SKIPPED)
        self._count(skipped.tolist())
        means = {}
        if not skipped.all():
            stacked = {name: value[~skipped].float().mean() for name, value in values.items()}
            means = {name: float(self.accelerator.reduce(value, "mean")) for name, value in stacked.items()}
            self.balance.watch(means, len(self.pending))
            self.reporter.show(
                {"loss": means["loss"], "images/s": len(self.pending) * self.config.batch_size / seconds}
            )
        self.line(
            {
                **means,
                "images_per_second": len(self.pending) * self.config.batch_size / seconds,
                "learning_rate": learning_rate(self.config, self.record.step - 1, self.record.total_steps),
                "skipped_steps": int(skipped.sum()),
            }
        )
        self.pending.clear()
        self.since = time.perf_counter()

    def _count(self, skipped: list[bool]) -> None:
        """Count skipped steps, say so, and stop where too many follow each other."""
        record, step = self.record, self.record.step
        for one in skipped:
            record.skipped, record.skipped_in_a_row = record.skipped + one, (record.skipped_in_a_row + 1) * one
        if record.skipped_in_a_row >= MOST_SKIPPED:
            raise DivergedError(
                f"the loss or its gradient was no number in the last {record.skipped_in_a_row} steps up to step "
                f"{step}, which were skipped; go on from a checkpoint in {self.path.parent / CHECKPOINTS} with "
                f"--resume and a smaller --learning-rate (it is {self.config.learning_rate}) or --precision float32, "
                "or start anew"
            )
        if any(skipped):
            self.reporter.say(f"step {step:,}: skipped {sum(skipped):,} steps whose gradient was no number")

    def line(self, values: Mapping[str, float]) -> None:
        """Append a line, and send it to the tracker."""
        step = self.record.step

        def append() -> None:
            with naming(self.path), self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self.accelerator.log(values, step=step)

        processes.on_main(self.accelerator, append)
        self.since = time.perf_counter()


def _drop_lines_after(path: Path, step: int) -> None:
    """What was logged beyond the checkpoint that a run resumes from will be logged again."""
    if path.exists():
        kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of_line(line) <= step]
        with atomic_file(path) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in kept))


def _step_of_line(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf  # the line that was being written when the power failed
