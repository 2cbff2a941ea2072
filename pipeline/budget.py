"""How many steps fit into a number of minutes: measured once, before the first step, on steps that are undone."""

import time
from collections.abc import Callable

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.training import Trainer, own_random_numbers

WARM_UP = 4
TIMED = 16
SPARE = 0.97  # of the time; the rest is for files, pictures and what the estimate misses


def steps_within(trainer: Trainer, seconds: float) -> int:
    """The steps that `seconds` suffice for on the slowest process, evaluations included. Raises UsageError for none."""
    started = time.perf_counter()
    state = trainer.state
    modules = [module for module in (state.task, state.average) if module is not None]
    before = [_copy(module) for module in modules]
    state.progress.total_steps = 10**9  # so deep in the warm-up that the steps are like any others, but small
    with own_random_numbers(trainer.device):
        for step in range(WARM_UP):
            trainer.train_step(step)
        per_step = _seconds(trainer, lambda: [trainer.train_step(WARM_UP + i) for i in range(TIMED)]) / TIMED
    evaluation = _seconds(trainer, trainer.evaluate) + _seconds(trainer, trainer.show_preview)
    for module, tensors in zip(modules, before, strict=True):
        module.load_state_dict(tensors)
    state.optimizer.state.clear()
    left = seconds - (time.perf_counter() - started) - evaluation * trainer.config.evaluations
    mine = torch.tensor([SPARE * left / per_step], device=trainer.device)
    steps = int(trainer.accelerator.gather(mine).min())
    if steps < 1:
        raise UsageError(
            f"--max-minutes leaves {max(0.0, left):.1f} s for training, after what came before it and "
            f"{trainer.config.evaluations} evaluations of {evaluation:.1f} s, and a step takes {per_step:.2f} s; "
            "give more minutes"
        )
    return steps


def _copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _seconds(trainer: Trainer, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - started
