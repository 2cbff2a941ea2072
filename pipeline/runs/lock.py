"""A folder is written to by one command at a time."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pipeline import processes
from pipeline.errors import FolderInUseError
from pipeline.runs.writer import Writer, as_json, read_writer, this_writer
from pipeline.storage import write_json

_LOCK = ".lock"  # locked by the operating system, which unlocks it whatever ends the process
_MARKER = ".lock.marker"  # where it cannot: its existence is the lock, and it names host and process
_WRITER = ".lock.json"  # who has the lock, for messages alone
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # some network file systems


@contextmanager
def locked(folder: Path, accelerator: Accelerator, prepare: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While it is entered, no other command writes into this folder, which is made if it is not there.

    `prepare` is done by the main process alone, once it has the lock. Raises, on every process alike, FolderInUseError
    when another command has the lock, and what `prepare` raises.
    """
    held = ExitStack()

    def acquire() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        held.callback(_acquire(folder).release)
        write_json(folder / _WRITER, as_json(this_writer()))
        held.callback((folder / _WRITER).unlink, missing_ok=True)
        prepare()

    with held:
        processes.on_main(accelerator, acquire)
        yield


def _acquire(folder: Path) -> BaseFileLock:
    """The lock of a folder, held. Raises FolderInUseError."""
    lock: BaseFileLock = FileLock(folder / _LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderInUseError(_in_use(folder)) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock = _acquire_marker(folder)
    return lock


def _acquire_marker(folder: Path) -> SoftFileLock:
    """A lock that a file's existence is; that of a dead process of this host is taken over, by filelock."""
    lock = SoftFileLock(folder / _MARKER)
    try:
        lock.acquire(timeout=0.1, poll_interval=0.02)  # the first attempt may do no more than remove a dead one
    except Timeout as error:
        writer = _writer(folder)
        host = f"host {writer.host}" if writer else "the command"
        message = _in_use(folder)
        if writer is None or writer.is_running() is None:
            message += f"; if {host} is known to be dead, delete {lock.lock_file}"
        raise FolderInUseError(message) from error
    return lock


def _in_use(folder: Path) -> str:
    writer = _writer(folder)
    who = f": {writer.in_words()}" if writer else ""
    return f"another command is writing into {folder}{who}; wait for it, or take another folder"


def _writer(folder: Path) -> Writer | None:
    """Who has the lock, unless that is not written down yet, or of an earlier command that was killed."""
    writer = read_writer(folder / _WRITER, Writer)
    return None if writer is None or writer.is_running() is False else writer
