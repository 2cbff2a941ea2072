"""Classes from a file beside the images: a CSV with a header, or JSON."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.sources.base import Labelling
from pipeline.data.sources.labelling import numbered
from pipeline.errors import DataError

NAME, LABEL = "file_name", "label"  # the columns, called so by the Hugging Face hub too
_SHOWN = 3  # names of each kind in an error


def read_label_file(path: Path, names: Sequence[str], data: str) -> Labelling:
    """The classes of these names: `file_name,label` in a .csv, or in a .json {name: class} or a list of such rows.

    Classes are numbered in the natural order of their names. Raises DataError, with all that does not fit, unless
    each name is there once and no other.
    """
    rows = _rows(path)
    repeated = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    classes = dict(rows)
    known = set(names)
    problems = [
        _listed(f"{path} has {len(rows):,} rows for {len(classes):,} files, and names more than once", repeated),
        _listed(f"{path} names {len(classes):,} files, and {data} lacks", [n for n in classes if n not in known]),
        _listed(f"{data} holds {len(names):,} images, and {path} lacks", [n for n in names if n not in classes]),
    ]
    if any(problems):
        advice = "each image needs one row, with its path below the folder or in the archive; or train with --no-labels"
        raise DataError("\n".join([*filter(None, problems), advice]))
    return numbered([classes[name] for name in names])


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{what} {len(names):,}: {', '.join(names[:_SHOWN])}{more}" if names else ""


def _rows(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets begin a CSV with a mark of the encoding
        rows = (
            _of_csv(path, text)
            if path.suffix.lower() == ".csv"
            else _of_json(path, json.loads(text, object_pairs_hook=tuple))
        )  # a name twice stays twice
    except FileNotFoundError as error:
        raise DataError(f"--label-file {path}: no such file") from error
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"--label-file {path} cannot be read as a .csv or .json in UTF-8: {error}") from error
    empty = [name for name, label in rows if not label.strip()]
    if empty:
        raise DataError(f"{path} has {len(empty):,} of {len(rows):,} rows without a class, such as that of {empty[0]}")
    return rows


def _of_csv(path: Path, text: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = reader.fieldnames or []
    missing = [column for column in (NAME, LABEL) if column not in header]
    if missing:
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}; its header is "
            f"{', '.join(header) or 'empty'}, and should be {NAME},{LABEL}"
        )
    return [(row[NAME] or "", (row[LABEL] or "").strip()) for row in reader]


def _of_json(path: Path, content: object) -> list[tuple[str, str]]:
    if isinstance(content, tuple):
        return [(name, as_class(label, f"{path} gives {name}")) for name, label in content]
    rows = [dict(row) for row in content if isinstance(row, tuple)] if isinstance(content, list) else []
    if rows and len(rows) == len(content) and all({NAME, LABEL} <= row.keys() for row in rows):  # type: ignore[arg-type]
        return [(str(row[NAME]), as_class(row[LABEL], f"{path} gives {row[NAME]}")) for row in rows]
    raise DataError(f'{path} must be {{"image.png": "class", ...}}, or a list of {{"{NAME}": ..., "{LABEL}": ...}}')


def as_class(label: object, who: str) -> str:
    """The name of a class, as it was written down. Raises DataError, with `who` wrote it, where it can be none."""
    name = str(label).strip()
    if isinstance(label, bool) or not isinstance(label, str | int) or not name:
        raise DataError(f"{who} the class {label!r:.60}; a class is a whole number, or a text that is not empty")
    return name
