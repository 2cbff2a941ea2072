"""A folder is written to by one command at a time; one of samples belongs to one request."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal

from accelerate import Accelerator
from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline import processes
from pipeline.checkpoint import FORMAT_VERSION
from pipeline.errors import CheckpointError, UsageError, describe
from pipeline.samples import CODES, Format, remove_partial
from pipeline.storage import read_json, write_json

REQUEST = "request.json"
_LOCK = ".lock"

_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Request:
    """request.json of a folder of samples: all that decides what its images are, and how they are laid out."""

    format_version: Literal[3] = FORMAT_VERSION
    kind: Literal["samples"] = "samples"
    vqvae_sha256: str
    prior_sha256: str
    seed: int
    label: str | None
    guidance: float = 1.0
    temperature: float
    top_k: int | None
    top_p: float | None
    precision: str
    format: Format


class Claim:
    """While it is entered, a folder is filled by this request and by nobody else.

    Entering raises, on every process alike, UsageError when the folder holds anything else or is being written to,
    and CheckpointError when its request cannot be read.
    """

    def __init__(self, folder: Path, request: Request, accelerator: Accelerator) -> None:
        self._folder, self._request, self._accelerator = folder, request, accelerator
        self._lock = FileLock(folder / _LOCK)

    def __enter__(self) -> "Claim":
        processes.on_main(self._accelerator, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _take(self) -> None:
        path = self._folder / REQUEST
        if not path.exists() and self._folder.exists() and any(self._folder.glob("[!.]*")):
            raise UsageError(f"{self._folder} exists already, and has no {REQUEST} to go on from; choose another --out")
        (self._folder / CODES).mkdir(parents=True, exist_ok=True)
        _acquire(self._lock, self._folder)
        if path.exists():
            self._compare(_read(path))
        else:
            write_json(path, asdict(self._request))
        remove_partial(self._folder, self._request.format)

    def _compare(self, begun: Request) -> None:
        asked, there = asdict(self._request), asdict(begun)
        differing = [f"{name} {there[name]}, not {asked[name]}" for name in there if there[name] != asked[name]]
        if differing:
            raise UsageError(f"{self._folder} holds samples of {'; '.join(differing)}; choose another --out or --seed")


@contextmanager
def alone_in(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """While it is entered, no other training or extraction writes into this folder, which is made if it is not there.

    Raises UsageError, on every process alike, when one does.
    """
    lock = FileLock(folder / _LOCK)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)

    processes.on_main(accelerator, take)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"another command is writing into {folder}; wait for it, or choose --out") from error


def _read(path: Path) -> Request:
    try:
        return TypeAdapter(Request).validate_python(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is not the request of samples: {describe(error)}") from error
