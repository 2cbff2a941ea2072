"""Images in Parquet files as the Hugging Face hub stores data sets: a column of images, and one of their classes.

Rows are read a few at a time, in the order that they are asked for: of a file of any size little is in memory.
"""

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from pipeline.data.sources.base import Labelling, Source
from pipeline.data.sources.labelling import numbered
from pipeline.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

_ROWS = 64  # read at a time, fewer where they are large
_BATCHES = 16  # of these, kept: threads that decode ask for rows near each other
_BYTES = 2**25  # of a batch about, and of all that are kept but the last
_IMAGE, _LABEL = "image", "label"  # columns of these names are taken where there are several


class _Columns(NamedTuple):
    """The column of images, that of classes if there is one, and the names of these where the schema has them."""

    image: str
    label: str | None
    class_names: tuple[str, ...]


class _File(NamedTuple):
    """A file, of which nothing is kept open: where each of its row groups begins, and how many rows there are."""

    path: Path
    columns: _Columns
    starts: Int[np.ndarray, "groups"]
    rows: int
    at_a_time: int  # rows of a batch


def open_parquet(paths: Sequence[Path], names: Sequence[str], largest: int) -> Source:
    """The images of Parquet files, called by these `names` and the numbers of their rows.

    Raises DataError where one is damaged, has no column of images or other columns than the first, and UsageError
    without pyarrow.
    """
    files = [_described(path) for path in paths]
    first = files[0]
    for other in files:
        if other.columns != first.columns:
            raise DataError(f"{other.path} has {other.columns}, and {first.path} has {first.columns}; name like files")
    rows, numbers = _Rows(files), {name: number for number, name in enumerate(names)}
    stats = ((name, path.stat()) for name, path in zip(names, paths, strict=True))

    def image(name: str) -> bytes:
        file, _, row = name.rpartition("/")
        return rows.image(numbers[file], int(row))

    return Source(
        tuple(f"{name}/{row}" for name, file in zip(names, files, strict=True) for row in range(file.rows)),
        lambda name: io.BytesIO(image(name)),
        lambda name: len(image(name)),
        "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats),
        largest,
        labelling=lambda: None if first.columns.label is None else _labelling(files, first.columns),
    )


def _described(path: Path) -> _File:
    with _opened(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)  # of a row
        at_a_time = max(1, min(_ROWS, _BYTES // max(1, largest)))
        starts = np.cumsum([0, *(group.num_rows for group in groups)])[:-1]
        return _File(path, _columns(file.schema_arrow, path), starts, metadata.num_rows, at_a_time)


def _opened(path: Path) -> "parquet.ParquetFile":
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{path} is read by pyarrow, which is missing: pip install 'gen-images[parquet]'") from error
    try:
        return parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)  # pages as they are needed, not a group
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable .parquet ({' '.join(str(error).split())}); fetch it again") from error


class _Reading(NamedTuple):
    """The file and the row group that are being read, the number of the next batch, and those to come."""

    number: int
    group: int
    following: int
    batches: "Iterator[pyarrow.RecordBatch]"


class _Rows:
    """The images of files by their rows; threads may ask."""

    def __init__(self, files: Sequence[_File]) -> None:
        self._files = files
        self._kept: OrderedDict[tuple[int, int, int], list[bytes | None]] = OrderedDict()
        self._kept_bytes = 0
        self._reading = _Reading(-1, -1, 0, iter(()))
        self._alone = threading.Lock()

    def image(self, number: int, row: int) -> bytes:
        """The bytes of the image in a row of a file. Raises OSError where there are none."""
        starts = self._files[number].starts
        group = int(np.searchsorted(starts, row, side="right")) - 1
        batch, within = divmod(row - int(starts[group]), self._files[number].at_a_time)
        with self._alone:
            found = self._batch(number, group, batch)[within]
        if found is None:
            raise OSError("has no bytes in its row, and files elsewhere are not read")
        return found

    def _batch(self, number: int, group: int, batch: int) -> list[bytes | None]:
        key = (number, group, batch)
        while key not in self._kept:
            self._read_on(number, group, batch)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read_on(self, number: int, group: int, batch: int) -> None:
        """Read the next batch of a row group, from its beginning where the wanted one has been passed."""
        file, reading = self._files[number], self._reading
        if reading[:2] != (number, group) or reading.following > batch:
            opened = _opened(file.path)
            batches = opened.iter_batches(file.at_a_time, [group], [file.columns.image], use_threads=False)
            reading = _Reading(number, group, 0, batches)
        self._reading = _Reading(-1, -1, 0, iter(()))  # what fails is begun anew
        try:
            values = next(reading.batches).column(0)
        except (StopIteration, OSError, ValueError) as error:  # Arrow's own errors of damaged files are ValueErrors
            raise OSError(f"row group {group} of {file.path} is damaged ({error})") from error
        self._reading = reading._replace(following=reading.following + 1)
        self._kept[number, group, reading.following] = read = _bytes_of(values)
        self._kept_bytes += _size(read)
        while len(self._kept) > 1 and (len(self._kept) > _BATCHES or self._kept_bytes > _BYTES):
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(images: Sequence[bytes | None]) -> int:
    return sum(len(image) for image in images if image is not None)


def _bytes_of(values: "pyarrow.Array") -> list[bytes | None]:
    """The images of a column: binary, or a structure with `bytes` in it."""
    listed: list[bytes | None] = (
        values.to_pylist() if values.type.num_fields == 0 else values.field("bytes").to_pylist()
    )
    return listed


def _columns(schema: "pyarrow.Schema", path: Path) -> _Columns:
    features = _features(schema)
    images = [field.name for field in schema if _holds_images(field.type)]
    images = [name for name in images if features.get(name, {}).get("_type") == "Image"] or images
    image = _one_of(images, _IMAGE)
    if image is None:
        raise DataError(
            f"{path} has {len(images)} columns that may be images ({', '.join(images)}) among "
            f"{', '.join(schema.names)}; one is wanted, or one called {_IMAGE}: binary, or a structure with `bytes`, "
            "as the Hugging Face hub has it"
        )
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = _LABEL if _LABEL in schema.names else _one_of(classes, _LABEL)
    if label is None and classes:
        raise DataError(
            f"{path} has {len(classes)} columns of classes, {', '.join(classes)}; call one of them {_LABEL}"
        )
    names = features.get(label or "", {}).get("names")
    return _Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else ())


def _one_of(names: Sequence[str], preferred: str) -> str | None:
    return preferred if preferred in names else names[0] if len(names) == 1 else None


def _features(schema: "pyarrow.Schema") -> dict[str, dict[str, object]]:
    """What the Hugging Face hub notes of the columns: JSON of theirs, of which nothing is sure."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_images(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_images(kind.field(i).type) for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _labelling(files: Sequence[_File], columns: _Columns) -> Labelling:
    values: list[object] = []
    for file in files:
        with _opened(file.path) as opened:
            values += opened.read([columns.label]).column(0).to_pylist()
    class_names = columns.class_names
    unfit = [value for value in values if not _is_class(value, class_names)]
    if unfit:
        meant = f"0 to {len(class_names) - 1}" if class_names else "a text or a whole number"
        raise DataError(
            f"{len(unfit):,} of {len(values):,} rows from {files[0].path} on have no class in {columns.label}, but "
            f"{unfit[0]!r:.60} in place of {meant}; "
            "mend them, or train with --no-labels"
        )
    if not class_names:
        return numbered(list(map(str, values)))
    return Labelling(tuple(value for value in values if isinstance(value, int)), class_names)


def _is_class(value: object, class_names: Sequence[str]) -> bool:
    if class_names:
        return isinstance(value, int) and 0 <= value < len(class_names)
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())
