"""How much memory and disk there is; what needs more is refused by name before it is begun."""

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import torch

from pipeline.errors import ResourceError

ROOT_GROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that one process of this machine may still take, within the limits of its container or job."""
    if device.type == "cuda":
        # What torch keeps for its next tensors counts as taken on the device.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = min([int(psutil.virtual_memory().available), *_left_in_groups()])
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_in_groups() -> list[int]:
    """What the control groups of this process (cgroup v2) leave it; the kernel gives cached files back when asked."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # no Linux
    left = []
    for name in (line.removeprefix("0::/") for line in own if line.startswith("0::/")):
        for group in (ROOT_GROUP / name, *(ROOT_GROUP / name).parents):
            limit, used, kinds = (group / f"memory.{file}" for file in ("max", "current", "stat"))
            if group.is_relative_to(ROOT_GROUP) and limit.is_file() and limit.read_text().strip().isdigit():
                cached = dict(line.split() for line in kinds.read_text().splitlines()).get("inactive_file", 0)
                left.append(int(limit.read_text()) - int(used.read_text()) + int(cached))
    return left


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
