"""When a checkpoint is due whatever `--checkpoints` says: no more than ten minutes of a training are ever lost."""

import time

import torch
from accelerate import Accelerator

SECONDS = 8 * 60.0  # so that ten minutes hold an evaluation and a picture besides
_AGREED_EVERY = 10  # steps of a GPU between two exchanges with the other processes, which wait for it


class SaveInterval:
    """Says by the clock when a checkpoint is due, on all processes alike. Weights do not depend on it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.begin()

    def begin(self) -> None:
        """Everything up to now is saved."""
        self._since = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether the last checkpoint is as old as that. Call it after every step."""
        passed = time.perf_counter() - self._since
        if self._accelerator.num_processes == 1:
            return passed >= SECONDS
        device = self._accelerator.device
        if device.type == "cuda" and step % _AGREED_EVERY:
            return False
        return float(self._accelerator.gather(torch.tensor([passed], device=device)).max()) >= SECONDS
