"""Code maps in memory and on disk: a file of them, or an index of shards, each of which is written whole."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.storage import (
    atomic_file,
    load_metadata,
    load_tensors,
    read_json,
    save_tensors,
    sha256,
    validated,
    write_json,
)
from stage1_vqvae import Codes, VQVAEConfig

INDEX = "index.json"


@plain_dataclass(frozen=True)
class CodeMaps:
    """Codes of many images: one integer tensor (n, height, width) a level, coarsest first, and labels (n,)."""

    levels: Codes
    labels: Int[Tensor, "n"] | None
    views: tuple[Codes, ...] = ()  # the codes of the same images mirrored or moved, to be learned from as well

    def __len__(self) -> int:
        return len(self.levels[0])


def join(parts: Iterable[CodeMaps]) -> CodeMaps:
    """The maps of several parts, one after another."""
    maps = list(parts)
    labels = [part.labels for part in maps if part.labels is not None]
    views = zip(*(part.views for part in maps), strict=True)
    return CodeMaps(
        _join_levels(part.levels for part in maps),
        torch.cat(labels) if labels else None,
        tuple(_join_levels(view) for view in views),
    )


def _join_levels(parts: Iterable[Codes]) -> Codes:
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def code_dtype(config: VQVAEConfig) -> torch.dtype:
    """int16 where every code fits, else int32; float32 where codes are numbers."""
    if not config.is_discrete:
        return torch.float32
    return torch.int16 if config.num_codes <= 2**15 else torch.int32


def save_codes(path: Path, maps: CodeMaps, metadata: Mapping[str, str]) -> None:
    """Write code maps as `level0`, `level1`, ..., `labels` (and `view1.level0`, ... for other views)."""
    tensors = {f"level{i}": level for i, level in enumerate(maps.levels)}
    for number, view in enumerate(maps.views, 1):
        tensors |= {f"view{number}.level{i}": level for i, level in enumerate(view)}
    if maps.labels is not None:
        tensors["labels"] = maps.labels
    save_tensors(path, tensors, metadata)


def load_codes(path: Path) -> CodeMaps:
    """Read code maps. Raises CheckpointError when the file is not one of code maps."""
    tensors = load_tensors(path)
    levels = _numbered(tensors, "level")
    views = takewhile(bool, (_numbered(tensors, f"view{number}.level") for number in count(1)))
    if not levels:
        raise CheckpointError(f"{path} holds no code maps (no tensor 'level0', but {sorted(tensors)[:5]})")
    return CodeMaps(levels, tensors.get("labels"), tuple(views))


def _numbered(tensors: dict[str, Tensor], prefix: str) -> Codes:
    names = takewhile(tensors.__contains__, (f"{prefix}{index}" for index in count()))
    return tuple(tensors[name] for name in names)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Shard:
    """A file of code maps that follow each other in a part of the data."""

    file: str
    maps: int
    sha256: str


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CodeIndex:
    """index.json of a folder of code maps: what the codes depend on, and the shards of each part, in order.

    It is written last, so that a folder with an index holds all of its maps.
    """

    format_version: Literal[4] = 4
    kind: Literal["codes"] = "codes"
    identity: dict[str, str]
    parts: dict[str, tuple[Shard, ...]]


def write_shard(folder: Path, file: str, maps: CodeMaps, identity: Mapping[str, str]) -> None:
    """Write code maps as one file, whole or not at all."""
    with atomic_file(folder / file) as unfinished:
        save_codes(unfinished, maps, identity)


def read_shard(folder: Path, file: str, identity: Mapping[str, str]) -> CodeMaps | None:
    """The code maps of a shard, if it is there, undamaged, and of this identity."""
    path = folder / file
    try:
        return load_codes(path) if load_metadata(path) == identity else None
    except CheckpointError:
        return None  # it will be written anew


def write_index(folder: Path, identity: Mapping[str, str], parts: Mapping[str, Mapping[str, int]]) -> None:
    """Write index.json for shards that are there; `parts` give the number of maps of each file."""
    shards = {
        part: tuple(Shard(file=file, maps=maps, sha256=sha256(folder / file)) for file, maps in files.items())
        for part, files in parts.items()
    }
    write_json(folder / INDEX, asdict(CodeIndex(identity=dict(identity), parts=shards)))


def read_index(folder: Path) -> CodeIndex:
    """The index of a folder of code maps. Raises CheckpointError."""
    path = folder / INDEX
    return validated(path, read_json(path), CodeIndex)


def read_parts(folder: Path, identity: Mapping[str, str]) -> dict[str, CodeMaps] | None:
    """The code maps of each part, if the folder holds undamaged ones of this identity."""
    try:
        index = read_index(folder)
        damaged = [s for part in index.parts.values() for s in part if sha256(folder / s.file) != s.sha256]
        if index.identity != identity or damaged:
            return None
        return {part: join(load_codes(folder / s.file) for s in shards) for part, shards in index.parts.items()}
    except (CheckpointError, OSError):
        return None  # the codes will be extracted anew, which says so
