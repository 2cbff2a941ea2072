"""A folder is written to by one command at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from pipeline import processes
from pipeline.errors import FolderInUseError

_LOCK = ".lock"


@contextmanager
def locked(folder: Path, accelerator: Accelerator, prepare: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While it is entered, no other command writes into this folder, which is made if it is not there.

    `prepare` is done by the main process alone, once it has the lock. Raises, on every process alike, FolderInUseError
    when another command has the lock, and what `prepare` raises.
    """
    lock = FileLock(folder / _LOCK)

    def acquire() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderInUseError(f"another command is writing into {folder}; wait for it, or choose --out") from error
        prepare()

    try:
        processes.on_main(accelerator, acquire)
        yield
    finally:
        lock.release()
