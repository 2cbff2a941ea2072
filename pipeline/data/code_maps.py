"""Code maps in memory and on disk: a file of them, or an index of shards, each of which is written whole."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.formats import FORMAT_VERSION, read_current
from pipeline.storage import (
    atomic_file,
    load_metadata,
    load_tensors,
    save_tensors,
    sha256,
    tensors_sha256,
    validated,
    write_json,
)
from stage1_vqvae import Codes, VQVAEConfig

INDEX = "index.json"
PARTS = ("train", "validation")  # of the split that are encoded; the test part is not looked at
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
    """Read code maps. Raises CheckpointError when the file is not one of code maps, or of no whole ones."""
    tensors = load_tensors(path)
    levels = _numbered(tensors, "level")
    views = takewhile(bool, (_numbered(tensors, f"view{number}.level") for number in count(1)))
    if not levels:
        raise CheckpointError(f"{path} holds no code maps (no tensor 'level0', but {sorted(tensors)[:5]})")
    maps = CodeMaps(levels, tensors.get("labels"), tuple(views))
    every, labels = (*levels, *chain(*maps.views)), maps.labels
    if any(level.ndim not in (3, 4) or not len(level) or len(level) != len(levels[0]) for level in every):
        shapes = ", ".join(str(tuple(level.shape)) for level in every)
        raise CheckpointError(f"{path} holds no code maps, as many at every level and one at least; got {shapes}")
    if labels is not None and (labels.shape != (len(maps),) or labels.is_floating_point() or labels.is_complex()):
        raise CheckpointError(
            f"{path} holds {len(maps):,} code maps, and labels that are {labels.dtype} {tuple(labels.shape)} and no "
            "whole number for each"
        )
    return maps


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

    format_version: Literal[7] = FORMAT_VERSION
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
    return validated(path, read_current(path), CodeIndex)


def read_parts(
    folder: Path, identity: Mapping[str, str], config: VQVAEConfig, num_classes: int
) -> dict[str, CodeMaps] | None:
    """The code maps of each part, if the folder holds undamaged ones of this identity, as such a stage 1 makes."""
    try:
        index = read_index(folder)
        shards = [shard for part in index.parts.values() for shard in part]
        if index.identity != identity or any(sha256(folder / shard.file) != shard.sha256 for shard in shards):
            return None
        loaded = {part: [load_codes(folder / s.file) for s in index.parts.get(part, ())] for part in PARTS}
        fit = all(_fit(maps, config, num_classes) for own in loaded.values() for maps in own)
        alike = all(len({len(maps.views) for maps in own}) == 1 for own in loaded.values())
        return {part: join(own) for part, own in loaded.items()} if fit and alike else None
    except (CheckpointError, OSError):
        return None  # the codes will be extracted anew, which says so


def _fit(maps: CodeMaps, config: VQVAEConfig, num_classes: int) -> bool:
    """Whether code maps may be those of a stage 1: their type and grids, codes that there are, and classes."""

    def within(numbers: Tensor, limit: int) -> bool:
        return bool(((numbers >= 0) & (numbers < limit)).all())

    labels, expected = maps.labels, [(code_dtype(config), grid) for grid in config.grids]
    labelled = labels is not None and labels.dtype == torch.int64 and within(labels, num_classes)
    return (labelled if num_classes else labels is None) and all(
        [(level.dtype, tuple(level.shape[1:])) for level in view] == expected
        and all(within(level, config.num_codes) for level in view)
        for view in (maps.levels, *maps.views)
    )
