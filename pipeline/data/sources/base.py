"""What a source is: a sorted list of names of image files, and a way to read one."""

import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import splitext
from typing import IO

from pipeline.data.pixels import BadImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


# What reading a file raises; RuntimeError: an encrypted member of a .zip.
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)

_PIECE = 2**13  # bytes read at a time: what a few compressed ones can unfold to is then bounded, whatever they say


@dataclass(frozen=True)
class Labelling:
    """The class of every image of a source, and the names of the classes in the order of their numbers."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def unlabelled() -> None:
    """Where nothing beside the images says their classes."""


@dataclass(frozen=True)
class Source:
    """Names of image files with forward slashes, in natural order, and functions from a name to its bytes, and to how
    many there are.

    `stamp` identifies the files without reading them (sizes and times), for the cache of decoded images; `largest` is
    how many bytes a file may have; `passed_over` are the suffixes of other files, with how many there are of each.
    `labelling` reads the classes that are written beside the images, of all of them; None where none are.
    """

    names: tuple[str, ...]
    open: Callable[[str], IO[bytes]]
    size: Callable[[str], int]
    stamp: str
    largest: int
    passed_over: tuple[tuple[str, int], ...] = ()
    labelling: Callable[[], Labelling | None] = unlabelled

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


def is_hidden(name: str) -> bool:
    """Whether a file or a folder above it is one that systems leave out of listings."""
    return any(part != "." and part.startswith((".", "__MACOSX")) for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return splitext(name)[1].lower() in SUFFIXES


def others(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The suffixes of files that are no images, and how often each occurs."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in names if not is_image(name))
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which `img10` comes after `img9`."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(piece), "") if piece.isdigit() and piece.isascii() else (1, 0, piece) for piece in pieces]
