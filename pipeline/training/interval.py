"""How many steps pass between two checkpoints at most, whatever `--checkpoints` says: about ten minutes of them."""

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

SECONDS = 8 * 60.0  # so that with evaluations and pictures in between, no more than ten minutes are ever lost
_TIMED = (2, 4, 8, 16)  # steps of this run after which the time of one is measured, each time better


@dataclass
class SaveInterval:
    """Says when a checkpoint is due: after a number of steps, once the first ones have been timed on all processes.

    Weights do not depend on it, so it is not saved: a run may be resumed on a slower machine.
    """

    accelerator: Accelerator
    last: int  # the step of the latest checkpoint, or that this run began with
    steps: int = 2**62
    _first: int = field(init=False)
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._first = self.last

    def is_due(self, step: int) -> bool:
        """Whether as many steps have been done since the last checkpoint. Call it after every step."""
        done = step - self._first
        if done == 1:  # the first one is slower
            self._since = time.perf_counter()
        if done in _TIMED:
            self._measure(done - 1)
        return step - self.last >= self.steps

    def _measure(self, timed: int) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        seconds = torch.tensor([time.perf_counter() - self._since], device=self.accelerator.device)
        slowest = float(self.accelerator.gather(seconds).max()) / timed
        self.steps = max(1, int(SECONDS / slowest))
