"""Images in a memory-mapped file: laid out with all its blocks, shortened in place, and held while it is in use."""

import contextlib
import errno
import fcntl
import math
import os
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

_ZEROS = 2**20  # bytes written at a time where blocks cannot be reserved
_NOT_TO_BE_HAD = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what file systems without such a call answer


def lay_out(path: Path, shape: tuple[int, int, int, int]) -> UInt8[np.memmap, "n c h w"]:
    """A new .npy file of this shape, open for writing, whose blocks are on the disk already.

    A disk that is full only when a page of the mapped file is first written ends the process without a word. Raises
    OSError on a full disk.
    """
    with path.open("w+b") as file:
        try:
            _reserve(file, _write_header(file, shape) + math.prod(shape))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    return np.lib.format.open_memmap(path, "r+")


def shorten(path: Path, n: int) -> None:
    """Keep the first n images of a file; the space of the others is given back."""
    whole = np.lib.format.open_memmap(path, "r")
    with path.open("r+b") as file:
        start = _write_header(file, (n, *whole.shape[1:]))
        assert start == whole.offset  # NumPy leaves space in a header for the largest number of rows
        file.truncate(start + n * math.prod(whole.shape[1:]))


def open_held(path: Path) -> UInt8[np.memmap, "n c h w"]:
    """The images of a file, for reading. While the array is there, `is_held` is true on every process."""
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # on a file system without locks `is_held` is always true
            fcntl.flock(file, fcntl.LOCK_SH)  # until the mapping, which keeps the open file, is closed
        version = np.lib.format.read_magic(file)
        assert version == (1, 0)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, np.uint8, "r", file.seek(0, os.SEEK_CUR), shape)


def is_held(path: Path) -> bool:
    """Whether any process has the images of this file open, or may have: not every file system has locks."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Begin a .npy file; returns how long its header is."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.seek(0, os.SEEK_CUR)


def _reserve(file: IO[bytes], size: int) -> None:
    """Make a file this long, with all its blocks: by the system's call, or else by writing zeros."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NOT_TO_BE_HAD:
                raise
    for start in range(file.seek(0, os.SEEK_END), size, _ZEROS):
        file.write(bytes(min(_ZEROS, size - start)))
    return None
