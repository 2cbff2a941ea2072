"""What is asked of a model, one request after another, each of which can be stopped."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Nobody waits for the answer any longer."""


class Requests:
    """A thread that does all work, in order: torch's settings are those of a thread or of the whole process, so that
    two at a time would not do."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "requests")
        self._closing = threading.Event()

    def answers(self, work: Callable[[Callable[[T], None]], T]) -> Iterator[T]:
        """What `work` shows by the function that it is given, as it is shown, and last what it returns.

        Once the iterator is closed, that function raises StoppedError: the work ends the next time that it shows
        something, or is not begun. Raises whatever the work raises.
        """
        shown, stopped = SimpleQueue[T | None](), threading.Event()

        def show(answer: T) -> None:
            if stopped.is_set() or self._closing.is_set():
                raise StoppedError
            shown.put(answer)

        future = self._pool.submit(work, show)
        future.add_done_callback(lambda _: shown.put(None))
        try:
            while (answer := shown.get()) is not None:
                yield answer
            yield future.result()
        finally:
            stopped.set()
            future.cancel()

    def close(self) -> None:
        """Stop the request that is at work, as one whose iterator is closed, and wait for it."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
