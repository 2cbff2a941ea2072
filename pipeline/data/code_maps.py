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
    FORMAT_VERSION,
    atomic_file,
    load_metadata,
    load_tensors,
    read_json,
    save_tensors,
    sha256,
    tensors_sha256,
    validated,
    write_json,
)
from stage1_vqvae import Codes, VQVAEConfig

INDEX = "index.json"
_HASH = "tensors_sha256"  # in the metadata of a shard: safetensors itself has no checksum


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
        join_levels(part.levels for part in maps),
        torch.cat(labels) if labels else None,
        tuple(join_levels(view) for view in views),
    )


def join_levels(parts: Iterable[Codes]) -> Codes:
    """The codes of several batches, one after another, level by level."""
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def code_dtype(config: VQVAEConfig) -> torch.dtype:
    """int16 where every code fits, else int32; float32 where codes are numbers."""
    if not config.is_discrete:
        return torch.float32
    return torch.int16 if config.num_codes <= 2**15 else torch.int32


def save_codes(path: Path, maps: CodeMaps, metadata: Mapping[str, str]) -> None:
    """Write code maps as `level0`, `level1`, ..., `labels` (and `view1.level0`, ... for other views)."""
    save_tensors(path, _tensors_of(maps), metadata)


def _tensors_of(maps: CodeMaps) -> dict[str, Tensor]:
    tensors = {f"level{i}": level for i, level in enumerate(maps.levels)}
    for number, view in enumerate(maps.views, 1):
        tensors |= {f"view{number}.level{i}": level for i, level in enumerate(view)}
    return tensors if maps.labels is None else {**tensors, "labels": maps.labels}


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

    format_version: Literal[4] = FORMAT_VERSION
    kind: Literal["codes"] = "codes"
    identity: dict[str, str]
    parts: dict[str, tuple[Shard, ...]]


def write_shard(folder: Path, file: str, maps: CodeMaps, identity: Mapping[str, str]) -> None:
    """Write code maps as one file, whole or not at all, with the hash of what it holds."""
    with atomic_file(folder / file) as unfinished:
        save_codes(unfinished, maps, {**identity, _HASH: tensors_sha256(_tensors_of(maps))})


def read_shard(folder: Path, file: str, identity: Mapping[str, str]) -> CodeMaps | None:
    """The code maps of a shard, if it is there, undamaged, and of this identity."""
    path = folder / file
    try:
        metadata, maps = load_metadata(path), load_codes(path)
    except CheckpointError:
        return None  # it will be written anew
    return maps if metadata == {**identity, _HASH: tensors_sha256(_tensors_of(maps))} else None


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
        shards = [shard for part in index.parts.values() for shard in part]
        if index.identity != identity or any(sha256(folder / shard.file) != shard.sha256 for shard in shards):
            return None
        return {part: join(load_codes(folder / s.file) for s in own) for part, own in index.parts.items()}
    except (CheckpointError, OSError):
        return None  # the codes will be extracted anew, which says so
