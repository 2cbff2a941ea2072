"""What is kept: decoded images, each set in a folder of its own, downloaded data sets and runs, and judges of images.

A set is decoded by one command at a time, and removed by nobody while a process has it open. What a killed command
left unfinished is removed when the next set is decoded.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pipeline import resources
from pipeline.data.kept.mapped import is_held
from pipeline.errors import ResourceError, UsageError
from pipeline.reporting import Reporter

IMAGES, FACTS, ABOUT = "images.npy", "facts.safetensors", "images.json"  # of a decoded set

DOWNLOADS = "torchvision"  # the key of the lock of data sets by name
HUB = "hub"  # of runs that are downloaded from the Hub
LIMIT = "GEN_CACHE_GIB"


@dataclass(frozen=True)
class Entry:
    """A decoded set: its folder, what it was decoded from, (n, channels, height, width), bytes, and its last use."""

    folder: Path
    data: str
    shape: tuple[int, ...]
    size: int
    used: datetime


def cache_folder() -> Path:
    """Where images and judges of images are kept: $GEN_CACHE, or gen-images in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GEN_CACHE") or Path(home) / "gen-images")


def decoded_folder() -> Path:
    """Where decoded sets lie."""
    return cache_folder() / "decoded"


def downloads_folder() -> Path:
    """Where torchvision puts the data sets that it downloads."""
    return cache_folder() / "torchvision"


def hub_folder() -> Path:
    """Where huggingface_hub puts the runs that it downloads."""
    return cache_folder() / "hub"


def judges_folder() -> Path:
    """Where the judges of `gen evaluate` lie, each in a folder of its own."""
    return cache_folder() / "judges"


def judges() -> list[Path]:
    """The folders of all judges."""
    return sorted(judges_folder().glob("[!.]*"))


def downloads() -> list[tuple[str, int]]:
    """The name and bytes of each file or folder that was downloaded."""
    return [(path.name, size_of(path)) for path in sorted(downloads_folder().glob("*"))]


def entries() -> list[Entry]:
    """All decoded sets, the least recently used first."""
    there = (_entry(folder) for folder in decoded_folder().glob("[!.]*"))
    return sorted((entry for entry in there if entry is not None), key=lambda entry: entry.used)


def _entry(folder: Path) -> Entry | None:
    try:
        used = datetime.fromtimestamp(folder.stat().st_mtime).astimezone()
        about = json.loads((folder / ABOUT).read_text())
        shape = np.load(folder / IMAGES, mmap_mode="r").shape
        return Entry(folder, about.get("data", "unknown"), shape, size_of(folder), used)
    except (FileNotFoundError, NotADirectoryError):  # another command is removing it; or it is none of ours
        return None
    except (OSError, ValueError, AttributeError, EOFError):
        return Entry(folder, "damaged", (0, 0, 0, 0), size_of(folder), used)


def size_of(folder: Path) -> int:
    """Bytes of a file, or of those below a folder."""
    return sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_file())


def limit() -> int | None:
    """Bytes that decoded sets may take together, from $GEN_CACHE_GIB; None without a limit. Raises UsageError."""
    given = os.environ.get(LIMIT, "").strip()
    if not given:
        return None
    try:
        gib = float(given)
    except ValueError:
        gib = math.nan
    if not gib >= 0:
        raise UsageError(f"{LIMIT} is {given!r}; set it to a number of GiB, such as 20")
    return None if math.isinf(gib) else int(gib * 2**30)


@contextmanager
def alone_with(key: str, reporter: Reporter, doing: str = "decoding or downloading the same images") -> Iterator[None]:
    """While it is entered no other command makes, or removes, what the key names; a second one waits, and says so."""
    lock = _lock(key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reporter.say(f"another command is {doing}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(key: str) -> FileLock:
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{key}.lock", mode=0o666)  # several people may have one cache


def remove_orphans(own: str = "") -> None:
    """Remove the unfinished sets and judges of commands that are no more: whose lock nobody has, or we have (`own`)."""
    for unfinished in (*decoded_folder().glob(".*.*"), *judges_folder().glob(".*.*")):
        key = unfinished.name.split(".")[1]
        with nullcontext(True) if key == own else _if_free(key) as free:
            if free:
                shutil.rmtree(unfinished, ignore_errors=True)  # it may be another person's


@contextmanager
def _if_free(key: str) -> Iterator[bool]:
    """Whether no other command makes or removes what the key names; if so, none begins to while it is entered."""
    lock = _lock(key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def remove(entry: Entry) -> bool:
    """Remove a set, unless it is in use: whether it was removed."""
    with _if_free(entry.folder.name) as free:
        if free and entry.folder.exists() and not is_held(entry.folder / IMAGES):
            shutil.rmtree(entry.folder)
            return True
    return False


def make_room(needed: int, what: str) -> None:
    """Remove the least recently used sets until `needed` bytes more are within the limit, and check the disk.

    Raises ResourceError where they are not, whatever is removed.
    """
    allowed = limit()
    if allowed is not None:
        there = entries()
        excess = sum(entry.size for entry in there) + needed - allowed
        for entry in there if needed <= allowed else []:
            if excess > 0 and remove(entry):
                excess -= entry.size
        if excess > 0:
            raise ResourceError(
                f"{what} takes {resources.in_words(needed)} of the cache, and {LIMIT} allows "
                f"{resources.in_words(allowed)}, sets in use included; raise it, or choose a smaller --image-size"
            )
    remedy = "choose a smaller --image-size, another disk with GEN_CACHE, or make room with `gen cache --clear`"
    resources.check_disk(decoded_folder(), needed, what, remedy)


_DOWNLOADED = ("MNIST", "FashionMNIST", "cifar-10-batches-py", "cifar-10-python.tar.gz")  # by torchvision


def clear() -> tuple[int, int]:
    """Remove all that is not in use, downloads included; returns the bytes that were removed, and those left."""
    before = size_of(cache_folder())
    remove_orphans()
    for entry in entries():
        remove(entry)
    for judge in judges():  # a command that uses one has it in memory
        with _if_free(judge.name) as free:
            if free:
                shutil.rmtree(judge, ignore_errors=True)  # it may be another person's
    with _if_free(DOWNLOADS) as free:
        if free:
            for pattern in _DOWNLOADED:  # somebody else may keep something beside them
                for path in downloads_folder().glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with _if_free(HUB) as free:  # a run that is loaded is in memory
        if free:
            shutil.rmtree(hub_folder(), ignore_errors=True)  # it may be another person's
    left = size_of(cache_folder())
    return before - left, left
