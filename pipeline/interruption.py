"""Ctrl-C, SIGTERM and a lost terminal: finish the step, save, and stop on every process at the same step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAUNCHERS_SECONDS = 2.0  # within which launchers send SIGTERM once more, which is no person's impatience
_AGREED_EVERY = 10  # steps between two exchanges with the other processes


class Interruption:
    """While it is entered, a first signal is noted as `signal_number` (0: none yet), and a second one acts at once; but
    for a SIGTERM that follows another at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.signal_number = 0
        self._noted = 0.0
        self._previous = ExitStack()  # brings the handlers of before back

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # signals are delivered to no other
            # A command behind nohup is to ignore a lost terminal. Ctrl-C is asked for by whoever sends it.
            nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for number in _SIGNALS[:-1] if nohup else _SIGNALS:
                self._previous.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._previous.close()

    def agreed(self, step: int) -> int:
        """The signal that any process was sent, or 0: the same answer on all of them."""
        if self._accelerator.num_processes == 1:
            return self.signal_number
        if step % _AGREED_EVERY:
            return 0
        mine = torch.tensor([self.signal_number], device=self._accelerator.device)
        return int(self._accelerator.gather(mine).max())

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number == 0:
            self.signal_number, self._noted = number, time.monotonic()
        elif number != signal.SIGTERM or time.monotonic() - self._noted > _LAUNCHERS_SECONDS:
            self._previous.close()
            signal.raise_signal(number)


@contextmanager
def signals_held() -> Iterator[None]:
    """What is done meanwhile is done whole: signals that would stop the command are delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
