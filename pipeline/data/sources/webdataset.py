"""Classes as WebDataset keeps them: in an archive a file of the same name beside each image, `.cls` or `.json`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pipeline.data.sources.base import UNREADABLE, Labelling, Source
from pipeline.data.sources.label_file import LABEL, as_class
from pipeline.data.sources.labelling import numbered
from pipeline.errors import DataError

LABEL_SUFFIXES = (".cls", ".json")  # the first that is there is read


def label_members(names: Iterable[str], suffix: str) -> dict[str, str]:
    """The files with this suffix, by what an image beside has in common with them: all before the name's first dot."""
    return {_common(name): name for name in names if PurePosixPath(name).suffix.lower() == suffix}


def _common(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def read_members(source: Source, beside: Mapping[str, Mapping[str, str]], path: str) -> Labelling | None:
    """The classes of a source's images from the files beside them; None where none says any.

    A .cls holds a class, a .json an object with `label`. Raises DataError where some images alone have a class.
    """
    for suffix in LABEL_SUFFIXES:
        found = {name: _class(source, file) for name in source.names if (file := beside[suffix].get(_common(name)))}
        known = {name: label for name, label in found.items() if label is not None}
        if known and len(known) < len(source.names):
            without = next(name for name in source.names if name not in known)
            raise DataError(
                f"{path} holds {len(source.names):,} images, and {len(known):,} have a class in a {suffix} beside "
                f"them: {without} has none; give it one, or train with --no-labels"
            )
        if known:
            return numbered([known[name] for name in source.names])
    return None


def _class(source: Source, file: str) -> str | None:
    """The class that a file says; None where a .json says other things alone."""
    try:
        text = source.read(file).decode("utf-8-sig").strip()
        content = text if file.lower().endswith(".cls") else json.loads(text)
    except (*UNREADABLE, ValueError, RecursionError) as error:
        raise DataError(f"{file}, which should say the class of an image, cannot be read: {error}") from error
    if file.lower().endswith(".json"):
        content = content.get(LABEL) if isinstance(content, dict) else None
    return None if content is None else as_class(content, f"{file} gives its image")
