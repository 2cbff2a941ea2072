"""Where images come from: a folder, a .zip read in place. A source is a sorted list of names and a way to read one."""

import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.config.data import EMBEDDED, NAMED
from pipeline.data.pixels import BadImageError
from pipeline.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


# What reading a file raises; RuntimeError: an encrypted member of a .zip.
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)

_PIECE = 2**13  # bytes read at a time: what a few compressed ones can unfold to is then bounded, whatever they say


@dataclass(frozen=True)
class Source:
    """Names of image files with forward slashes, in natural order, and functions from a name to its bytes, and to how
    many there are.

    `stamp` identifies the files without reading them (sizes and times), for the cache of decoded images; `largest` is
    how many bytes a file may have; `passed_over` are the suffixes of other files, with how many there are of each.
    """

    names: tuple[str, ...]
    open: Callable[[str], IO[bytes]]
    size: Callable[[str], int]
    stamp: str
    largest: int
    passed_over: tuple[tuple[str, int], ...] = ()

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises BadImageError where there are too many, and what `UNREADABLE` lists."""
        self._check(self.size(name))
        read, size = [], 0
        for piece in self.pieces(name):
            size += len(piece)
            self._check(size)
            read.append(piece)
        return b"".join(read)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a few at a time. Raises what `UNREADABLE` lists."""
        with self.open(name) as file:
            while piece := file.read(_PIECE):
                yield piece

    def _check(self, size: int) -> None:
        if size > self.largest:
            limit = f"{self.largest:,} at most; a training takes more with --max-pixels"
            raise BadImageError(f"has {size:,} bytes or more ({limit})")


@dataclass(frozen=True)
class Labelling:
    """The class of every image of a source, and the names of the classes in the order of their numbers."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def open_source(path: Path, largest: int) -> Source:
    """A folder, a .zip or one image as a source, of files of `largest` bytes at most.

    Raises DataError when there is no such path, or no image in it.
    """
    if not path.exists():
        raise DataError(
            f"no such file or folder: {path}; name a folder of images, a .zip of one, or a data set "
            f"({', '.join((EMBEDDED, *NAMED))})"
        )
    if not (path.is_dir() or path.is_file()):  # a device may never end, and a pipe never begin
        raise DataError(f"{path} is a device, a pipe or a socket; name a folder of images, a .zip of one, or an image")
    source = _open_folder(path, largest) if path.is_dir() else _open_file(path, largest)
    if not source.names:
        raise DataError(f"no images under {path}; looked for {', '.join(sorted(SUFFIXES))}")
    return source


def _open_folder(root: Path, largest: int) -> Source:
    there = {name: root / real for name, real in _printable(_walk(root)).items() if not _is_hidden(name)}
    files = {name: path for name, path in there.items() if _is_image(name)}
    names = tuple(sorted(files, key=_natural))
    stats = ((name, files[name].stat()) for name in names)
    stamp = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return Source(
        names,
        lambda name: files[name].open("rb"),
        lambda name: files[name].stat().st_size,
        stamp,
        largest,
        _others(there),
    )


def _printable(names: Iterable[str]) -> dict[str, str]:
    """Names of files as text to the names that the system knows them by: bytes that are no UTF-8 are written as \\xfc.

    Raises DataError where two files or folders would be called the same.
    """
    shown = {name: _as_text(name) for name in names}
    if any(name != text for name, text in shown.items()):
        parts = {str(part) for name in shown for part in (PurePosixPath(name), *PurePosixPath(name).parents)}
        repeated = [text for text, count in Counter(map(_as_text, parts)).items() if count > 1]
        if repeated:
            raise DataError(f"two files or folders would both be called {repeated[0]}; rename one of them")
    return {text: name for name, text in shown.items()}


def _as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(root: Path) -> Iterator[str]:
    """Names of all regular files below a folder. Links are followed, no folder is entered twice."""
    seen = {root.resolve()}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        real = {name: (here / name).resolve() for name in sorted(subfolders)}
        subfolders[:] = [name for name, target in real.items() if target not in seen]
        seen |= set(real.values())
        yield from ((here / name).relative_to(root).as_posix() for name in files if (here / name).is_file())


def _open_file(path: Path, largest: int) -> Source:
    if path.suffix.lower() in SUFFIXES:
        stat = path.stat()
        stamp = f"{stat.st_size} {stat.st_mtime_ns}"
        return Source((path.name,), lambda _: path.open("rb"), lambda _: stat.st_size, stamp, largest)
    return _open_zip(path, largest)


def _open_zip(path: Path, largest: int) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, NotImplementedError) as error:
        raise DataError(f"{path} is neither a folder nor a readable .zip: {error}") from error
    there = {info.filename: info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)}
    members = {name: info for name, info in there.items() if _is_image(name)}
    names = tuple(sorted(members, key=_natural))
    stamp = "\n".join(f"{name} {members[name].file_size} {members[name].CRC}" for name in names)
    return Source(names, archive.open, lambda name: members[name].file_size, stamp, largest, _others(there))


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _others(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The suffixes of files that are no images, and how often each occurs."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names if not _is_image(name))
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `img10` comes after `img9`."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(piece), "") if piece.isdigit() and piece.isascii() else (1, 0, piece) for piece in pieces]


def label_by_folder(names: tuple[str, ...]) -> Labelling | None:
    """One class for each folder below the last one that holds everything; None for a flat or mixed layout.

    >>> label_by_folder(("photos/cat/1.png", "photos/dog/2.png", "photos/cat/3.png"))
    Labelling(labels=(0, 1, 0), class_names=('cat', 'dog'))
    >>> label_by_folder(("photos/1.png", "photos/dog/2.png")) is None
    True
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    common = _common_length(folders)
    if any(len(folder) == common for folder in folders):
        return None
    classes = sorted({folder[common] for folder in folders}, key=_natural)
    number = {name: index for index, name in enumerate(classes)}
    return Labelling(tuple(number[folder[common]] for folder in folders), tuple(classes))


def _common_length(folders: list[tuple[str, ...]]) -> int:
    """How many leading parts all paths share."""
    # Paths differ in depth: beyond the shortest one nothing is shared by all, so zip may end there.
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return sum(1 for _ in alike)
