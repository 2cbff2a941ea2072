"""Ctrl-C and SIGTERM during a training: finish the step, save, and stop on every process at the same step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGREED_EVERY = 10  # steps between two questions to the other processes


class Interruption:
    """While it is entered, a first signal is a `wish` (its number), and a second one acts at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.wish = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # signals are delivered to no other
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, step: int) -> int:
        """The signal on which any process was asked to stop, or 0: the same answer on all of them."""
        if self._accelerator.num_processes == 1:
            return self.wish
        if step % _AGREED_EVERY:
            return 0
        wish = torch.tensor([self.wish], device=self._accelerator.device)
        return int(self._accelerator.gather(wish).max())

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.wish = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
