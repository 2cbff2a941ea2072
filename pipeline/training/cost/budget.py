"""What a training costs, found before its first step: the steps that fit into a number of minutes, and its memory."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from pipeline.errors import UsageError
from pipeline.randomness import batch_indices
from pipeline.training.cost.memory import PROBED, activations, saved_bytes, tensor_bytes, weight_bytes
from pipeline.training.loop.task import Batch, ReportedT
from pipeline.training.loop.trainer import Trainer, own_random_numbers

WARM_UP = 4
TIMED = 16
SPARE = 0.97  # of the time; the rest is for files, pictures and what the estimate misses


class Timed(NamedTuple):
    """Steps that fit into a time, and how many images a second they take, all processes together."""

    steps: int
    images_per_second: float


def steps_within(trainer: Trainer[Batch, ReportedT], seconds: float) -> Timed:
    """The steps that `seconds` suffice for on the slowest process, evaluations included. Raises UsageError for none."""
    started = time.perf_counter()
    state = trainer.state
    modules = [module for module in (state.task, state.average) if module is not None]
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    state.record.total_steps = 10**9  # so deep in the warm-up that the steps are like any others, but small
    with own_random_numbers(trainer.device):
        for step in range(WARM_UP):
            trainer.train_step(step)
        per_step = _seconds(trainer, lambda: [trainer.train_step(WARM_UP + i) for i in range(TIMED)]) / TIMED
    evaluation = _seconds(trainer, trainer.evaluate) + _seconds(trainer, trainer.show_preview)
    for module, tensors in zip(modules, before, strict=True):
        module.load_state_dict(tensors)
    state.optimizer.state.clear()
    left = seconds - (time.perf_counter() - started) - evaluation * trainer.config.evaluations
    own = torch.tensor([[SPARE * left / per_step, trainer.config.batch_size / per_step]], device=trainer.device)
    slowest = trainer.accelerator.gather(own).amin(0)
    steps, images_per_second = int(slowest[0]), float(slowest[1])
    if steps < 1:
        least = (trainer.config.max_minutes or 0) + (per_step / SPARE - left) / 60
        raise UsageError(
            f"--max-minutes leaves {max(0.0, left):.1f} s for training, after what came before it and "
            f"{trainer.config.evaluations} evaluations of {evaluation:.1f} s, and a step takes {per_step:.2f} s; "
            f"a single step would take {least + 0.005:.2f} minutes in all, so give more than that"
        )
    return Timed(steps, images_per_second)


def _seconds(trainer: Trainer[Batch, ReportedT], work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - started


def expected_memory(trainer: Trainer[Batch, ReportedT]) -> int:
    """Bytes a process for weights, gradients, AdamW's two moments, the average, and a micro-batch's activations."""
    micro_batch = trainer.config.batch_size // (trainer.config.micro_batches or 1)
    with own_random_numbers(trainer.device), trainer.autocast():
        few, more = (saved_bytes(trainer.module, _batch(trainer, images)) for images in PROBED)
    weights = weight_bytes(tensor_bytes(trainer.module), trainer.config)
    return weights + activations(few, more, micro_batch, trainer.device)


def _batch(trainer: Trainer[Batch, ReportedT], n: int) -> Batch:
    return trainer.training_batch(batch_indices(trainer.config.seed, 0, n, trainer.data.population))
