"""How much memory and disk there is; what needs more is refused by name before it is begun."""

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import torch

from pipeline.errors import ResourceError


def free_memory(device: torch.device) -> int:
    """Bytes that one process of this machine may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():  # a container's, else "max"
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_disk(path: Path) -> int:
    """Bytes that may still be written where this path is, or is to be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def check_memory(device: torch.device, needed: int, what: str, remedy: str) -> None:
    """Raise ResourceError unless `needed` bytes are free. `what` needs them, `remedy` says what to do."""
    free = free_memory(device)
    if needed > free:
        raise ResourceError(f"{what} takes about {in_words(needed)} of memory, and {in_words(free)} are free; {remedy}")


def check_disk(path: Path, needed: int, what: str, remedy: str) -> None:
    """Raise ResourceError unless `needed` bytes are free where `path` is, or is to be."""
    free = free_disk(path)
    if needed > free:
        raise ResourceError(
            f"{what} takes about {in_words(needed)} of disk in {path}, and {in_words(free)} are free; {remedy}"
        )


def check_writable(path: Path) -> None:
    """Raise ResourceError unless a file or folder of this name can be made. Nothing is left behind."""
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        path.exists()  # which no name is that is too long
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror}); choose another --out") from error


def in_words(size: int) -> str:
    """Bytes in the largest unit of which there is one.

    >>> [in_words(size) for size in (17, 2048, 5 * 2**29)]
    ['17 bytes', '2.0 KiB', '2.5 GiB']
    """
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, max(0, size.bit_length() - 1) // 10)
    return f"{size} bytes" if power == 0 else f"{size / 2 ** (10 * power):,.1f} {units[power]}"
