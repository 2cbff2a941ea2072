"""metrics.jsonl: means over the steps since the last line, also shown beside the bar and sent to a tracker."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.config.training import TrainingConfig, learning_rate
from pipeline.errors import DivergedError
from pipeline.reporting import Reporter
from pipeline.runs.layout import CHECKPOINTS, METRICS
from pipeline.storage import atomic_file, naming
from pipeline.training.checkpoint import StepRecord


class Log:
    """Means over the steps since the last line, written to metrics.jsonl, the bar and the tracker."""

    def __init__(
        self, accelerator: Accelerator, reporter: Reporter, folder: Path, config: TrainingConfig, record: StepRecord
    ) -> None:
        self.accelerator, self.reporter, self.config, self.record = accelerator, reporter, config, record
        self.path = folder / METRICS
        self.pending: list[Mapping[str, Tensor]] = []
        self.since = time.perf_counter()
        if accelerator.is_main_process:
            _drop_lines_after(self.path, record.step)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Remember a step's metrics, without waiting for the device."""
        self.pending.append(metrics)

    def write(self) -> None:
        """Write the means, if there are any new ones.

        Raises DivergedError, on every process alike, when the loss or the gradient was no number on any of them: called
        before every evaluation and checkpoint, so that neither is ever of lost weights.
        """
        if not self.pending:
            return
        seconds = time.perf_counter() - self.since
        stacked = {name: torch.stack([m[name] for m in self.pending]).float().mean() for name in self.pending[0]}
        means = {name: float(self.accelerator.reduce(value, "mean")) for name, value in stacked.items()}
        step = self.record.step
        if not math.isfinite(means["loss"] + means["gradient_norm"]):
            raise DivergedError(
                f"the loss is {means['loss']}, the gradient {means['gradient_norm']} near step {step}; try a smaller "
                f"--learning-rate (it is {self.config.learning_rate}) or --precision float32; checkpoints are in "
                f"{self.path.parent / CHECKPOINTS}"
            )
        means["images_per_second"] = len(self.pending) * self.config.batch_size / seconds
        means["learning_rate"] = learning_rate(self.config, step - 1, self.record.total_steps)
        self.line(means)
        self.reporter.show({"loss": means["loss"], "images/s": means["images_per_second"]})
        self.pending.clear()
        self.since = time.perf_counter()

    def line(self, values: Mapping[str, float]) -> None:
        """Append a line, and send it to the tracker."""
        step = self.record.step
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with naming(self.path), self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
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
    except (ValueError, KeyError, TypeError):
        return math.inf  # the line that was being written when the power failed
