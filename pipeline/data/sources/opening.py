"""Opens what holds images: a folder, a .zip, .tar or .parquet read in place, several of these, one image."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.config.data import EMBEDDED, NAMED
from pipeline.data.sources.base import SUFFIXES, Source, is_hidden, is_image, natural, others
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.several import files_of, is_pattern, joined
from pipeline.data.sources.tar import is_tar, open_tar
from pipeline.errors import DataError


def open_source(path: Path, largest: int) -> Source:
    """A folder, a .zip, .tar or .parquet, those that fit a pattern, or one image as a source, of files of `largest`
    bytes at most.

    Raises DataError when there is no such path, or no image in it.
    """
    if is_pattern(path):
        return _open_several(files_of(path), path, largest)
    if not path.exists():
        raise DataError(
            f"no such file or folder: {path}; name a folder of images, a .zip or .tar of one, a .parquet, or a data "
            f"set ({', '.join((EMBEDDED, *NAMED))})"
        )
    if not (path.is_dir() or path.is_file()):  # a device may never end, and a pipe never begin
        raise DataError(
            f"{path} is a device, a pipe or a socket; name a folder of images, a .zip or .tar of one, or an image"
        )
    source = _open_folder(path, largest) if path.is_dir() else _open_file(path, largest)
    if not source.names:
        raise DataError(f"no images under {path}; looked for {', '.join(sorted(SUFFIXES))}")
    return source


def _open_several(paths: Sequence[Path], pattern: Path, largest: int) -> Source:
    if _is_parquet(paths[0]):
        folder = os.path.commonpath([path.parent for path in paths])
        return open_parquet(paths, [path.relative_to(folder).as_posix() for path in paths], largest)
    return joined([open_source(path, largest) for path in paths], paths, pattern)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _open_folder(root: Path, largest: int) -> Source:
    there = {name: real for name, real in _printable(_walk(root)).items() if not is_hidden(name)}
    files = {name: real for name, real in there.items() if is_image(name)}  # of a million texts take less than paths
    names = tuple(sorted(files, key=natural))
    tables = sorted((name for name in there if _is_parquet(Path(name))), key=natural) if not names else []
    if tables:
        return open_parquet([root / there[name] for name in tables], tables, largest)
    stats = ((name, (root / files[name]).stat()) for name in names)
    stamp = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return Source(
        names,
        lambda name: (root / files[name]).open("rb"),
        lambda name: (root / files[name]).stat().st_size,
        stamp,
        largest,
        others(there),
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
    seen = {os.path.realpath(root)}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(f"{folder}/{name}") for name in sorted(subfolders)}
        subfolders[:] = [name for name, target in real.items() if target not in seen]
        seen |= set(real.values())
        below = Path(folder).relative_to(root).as_posix()
        before = "" if below == "." else f"{below}/"
        # A Path for each of a million files would take longer than the system's answer.
        yield from (f"{before}{name}" for name in files if os.path.isfile(f"{folder}/{name}"))  # noqa: PTH113


def _open_file(path: Path, largest: int) -> Source:
    if path.suffix.lower() in SUFFIXES:
        stat = path.stat()
        stamp = f"{stat.st_size} {stat.st_mtime_ns}"
        return Source((path.name,), lambda _: path.open("rb"), lambda _: stat.st_size, stamp, largest)
    if _is_parquet(path):
        return open_parquet([path], [path.name], largest)
    if is_tar(path):
        return open_tar(path, largest)
    return _open_zip(path, largest)


def _open_zip(path: Path, largest: int) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, NotImplementedError) as error:
        raise DataError(f"{path} is neither a folder nor a readable .zip or .tar: {error}") from error
    there = {info.filename: info for info in archive.infolist() if not info.is_dir() and not is_hidden(info.filename)}
    members = {name: info for name, info in there.items() if is_image(name)}
    names = tuple(sorted(members, key=natural))
    stamp = "\n".join(f"{name} {members[name].file_size} {members[name].CRC}" for name in names)
    return Source(names, archive.open, lambda name: members[name].file_size, stamp, largest, others(there))
