"""Images in a .tar: its headers are read once, and files in place by where they begin."""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

from pipeline.data.sources.base import Source, is_hidden, is_image, natural, others
from pipeline.data.sources.webdataset import LABEL_SUFFIXES, label_members, read_members
from pipeline.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$", re.IGNORECASE)


class _Part(io.RawIOBase):
    """The bytes of a file from `start` on, of which there are `size`; each reader opens the file anew."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._start, self._size, self._at = start, size, 0
        self._file = path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        found = self._file.read(left if size < 0 else min(size, left))
        self._at += len(found)
        return found

    def readinto(self, buffer: "WriteableBuffer") -> int:
        into = memoryview(buffer).cast("B")
        found = self.read(len(into))
        into[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_tar(path: Path) -> bool:
    """Whether a file is a .tar by its name, compressed or not."""
    return _TAR.search(path.name) is not None


class _Member(NamedTuple):
    """Where the bytes of a file begin in a .tar, how many there are, and when it was last changed."""

    start: int
    size: int
    changed: float


def open_tar(path: Path, largest: int) -> Source:
    """The images of a .tar, of which nothing is unpacked; WebDataset's .cls or .json beside them say their classes.

    Raises DataError where it is compressed, damaged or cut short, or holds links, devices or names that lead out of it.
    """
    if path.suffix.lower() != ".tar":
        raise DataError(f"{path} is compressed, so that no image can be read in place; decompress it to a .tar first")
    there = {name: member for name, member in _members(path) if not is_hidden(name)}
    members = {name: member for name, member in there.items() if is_image(name)}
    names = tuple(sorted(members, key=natural))
    lines = (f"{name} {members[name].start} {members[name].size} {members[name].changed}" for name in names)
    stamp = "\n".join((str(path.stat().st_mtime_ns), *lines))

    def open_member(name: str) -> IO[bytes]:
        return io.BufferedReader(_Part(path, there[name].start, there[name].size))

    beside = {suffix: label_members(there, suffix) for suffix in LABEL_SUFFIXES}
    read = {name for files in beside.values() for name in files.values()}
    passed_over = others(name for name in there if name not in read)
    source = Source(names, open_member, lambda name: there[name].size, stamp, largest, passed_over)
    return replace(source, labelling=lambda: read_members(source, beside, str(path)))


def _members(path: Path) -> Iterator[tuple[str, _Member]]:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # of a million files it would keep gigabytes
                if not info.isdir():
                    yield _checked(path, info), _Member(info.offset_data, info.size, info.mtime)
            # tarfile takes a damaged header for the end, which blocks of zeros mark.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path} is damaged or cut short at byte {archive.offset:,}; make or fetch it again")
    except (tarfile.TarError, OSError, EOFError, OverflowError) as error:
        raise DataError(
            f"{path} is no readable .tar ({error}); one that is compressed is decompressed first"
        ) from error


def _checked(path: Path, info: tarfile.TarInfo) -> str:
    """The name of a file in a .tar. Raises DataError where it is none that could be read in place."""
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path} holds {info.name!r}, a name that leads out of it; make it of names below one folder")
    if not info.isreg() or info.issparse() or info.size < 0:
        raise DataError(
            f"{path} holds {info.name!r}, which is a link, a device or otherwise no ordinary file; "
            "make it with `tar --dereference` of files alone"
        )
    return name.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
