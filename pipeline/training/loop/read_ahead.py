"""The batches of the next step are made while this step computes: read, cut out, mirrored, and sent to the device.

Where the device is the CPU itself the thread takes from the step what it saves: there each step makes its own.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic

import torch

from pipeline.training.loop.task import Batch


class ReadAhead(Generic[Batch]):
    """The batches of a step, from a thread that began with them a step before.

    `make` is a function of the step alone, so what a step gets does not depend on when it was made, nor on which step
    was asked for before: there is nothing to save and nothing to resume.
    """

    def __init__(self, make: Callable[[int], Sequence[Batch]], device: torch.device) -> None:
        self._make, self._ahead = make, device.type != "cpu"
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: tuple[int, Future[Sequence[Batch]]] | None = None

    def of_step(self, step: int, last: int) -> Sequence[Batch]:
        """The batches of this step; those of the next one are begun, unless this is the `last`."""
        begun = self._next[1] if self._next is not None and self._next[0] == step else None
        batches = self._make(step) if begun is None else begun.result()
        begins = self._ahead and step < last
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if begins else None
        return batches

    def close(self) -> None:
        """Begin nothing more, and let go of what was made."""
        self._next = None
        self._thread.shutdown(wait=False, cancel_futures=True)
