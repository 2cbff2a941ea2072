"""Code maps on disk: an index of shards, each of which is written whole, by the process that encoded it.

What is read is mapped into memory: a set of codes may be larger than it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.data.codes.maps import CodeMaps, code_dtype, join_levels, load_codes, save_codes, tensors_of
from pipeline.errors import CheckpointError
from pipeline.formats import FORMAT_VERSION, read_current
from pipeline.storage import atomic_file, load_metadata, sha256, tensors_sha256, validated, write_json
from stage1_vqvae import VQVAEConfig

INDEX = "index.json"
PARTS = ("train", "validation")  # of the split that are encoded; the test part is not looked at
_HASH = "tensors_sha256"  # in the metadata of a shard: safetensors itself has no checksum


@plain_dataclass(frozen=True)
class StoredCodes:
    """The code maps of a part of the data, in shards that follow one another; what is asked for alone is in memory.

    `unigram_nats`: of each level the entropy of a code drawn by its frequency alone, in nats.
    """

    shards: tuple[CodeMaps, ...]
    unigram_nats: tuple[float, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> Int[np.ndarray, "shards"]:
        return np.cumsum([len(shard) for shard in self.shards])

    @property
    def encodings(self) -> int:
        """In how many views each image is."""
        return self.shards[0].encodings

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the map of each level."""
        return self.shards[0].grids

    def rows(self, items: Int[np.ndarray, "m"], levels: int, encodings: Int[np.ndarray, "m"] | None = None) -> CodeMaps:
        """What `CodeMaps.rows` of all maps in memory would give."""
        number = np.searchsorted(self._ends, items, side="right")
        within = items - (self._ends - [len(shard) for shard in self.shards])[number]
        order = np.argsort(number, kind="stable")
        parts = [group for group in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(group)]
        if not parts:
            return self.shards[0].rows(items, levels, encodings)
        found = [
            self.shards[number[part[0]]].rows(within[part], levels, None if encodings is None else encodings[part])
            for part in parts
        ]
        back = torch.from_numpy(np.argsort(order))
        labels = [part.labels for part in found if part.labels is not None]
        joined = join_levels(part.levels for part in found)
        return CodeMaps(tuple(level[back] for level in joined), torch.cat(labels)[back] if labels else None)

    def class_counts(self, num_classes: int) -> Int[np.ndarray, "classes"]:
        """How many maps each class has."""
        of_shards = (shard.labels for shard in self.shards)
        counts = [torch.bincount(labels, minlength=num_classes) for labels in of_shards if labels is not None]
        return torch.stack(counts).sum(0).numpy() if counts else np.zeros(num_classes, np.int64)


def code_counts(maps: CodeMaps, num_codes: int) -> Int[Tensor, "levels codes"]:
    """How often each code is met at each level, in the images as they are."""
    return torch.stack([torch.bincount(level.flatten(), minlength=num_codes) for level in maps.levels])


def unigram_entropy(counts: Int[Tensor, "levels codes"]) -> tuple[float, ...]:
    """Entropy in nats of a code of each level, drawn by frequency alone: what a prior without context would reach."""
    frequencies = counts.double() / counts.sum(1, keepdim=True)
    return tuple(torch.special.entr(frequencies).sum(1).tolist())


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

    format_version: Literal[8] = FORMAT_VERSION
    kind: Literal["codes"] = "codes"
    identity: dict[str, str]
    parts: dict[str, tuple[Shard, ...]]
    unigram_nats: dict[str, tuple[float, ...]]  # of the codes of each part, by level; older versions counted none


def write_shard(folder: Path, file: str, maps: CodeMaps, identity: Mapping[str, str]) -> None:
    """Write code maps as one file, whole or not at all, with the hash of what it holds."""
    with atomic_file(folder / file) as unfinished:
        save_codes(unfinished, maps, {**identity, _HASH: tensors_sha256(tensors_of(maps))})


def read_shard(folder: Path, file: str, identity: Mapping[str, str]) -> CodeMaps | None:
    """The code maps of a shard, if it is there, undamaged, and of this identity."""
    path = folder / file
    try:
        metadata, maps = load_metadata(path), load_codes(path)
    except CheckpointError:
        return None  # it will be written anew
    return maps if metadata == {**identity, _HASH: tensors_sha256(tensors_of(maps))} else None


def write_index(
    folder: Path,
    identity: Mapping[str, str],
    parts: Mapping[str, Sequence[Shard]],
    unigram_nats: Mapping[str, tuple[float, ...]],
) -> None:
    """Write index.json for shards that are there."""
    shards = {part: tuple(own) for part, own in parts.items()}
    write_json(
        folder / INDEX, asdict(CodeIndex(identity=dict(identity), parts=shards, unigram_nats=dict(unigram_nats)))
    )


def read_index(folder: Path) -> CodeIndex:
    """The index of a folder of code maps. Raises CheckpointError."""
    path = folder / INDEX
    return validated(path, read_current(path), CodeIndex)


def read_parts(
    folder: Path,
    identity: Mapping[str, str],
    config: VQVAEConfig,
    num_classes: int,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, StoredCodes] | None:
    """The code maps of each part, if the folder holds undamaged ones of this identity, as such a stage 1 makes.

    Of several processes each looks at its share of the shards: the codes are right where none of them returns None.
    """
    try:
        index = read_index(folder)
        counted = all(len(index.unigram_nats.get(part, ())) == config.levels for part in PARTS)
        checked = slice(rank, None, world_size) if counted else slice(None)
        shards = [shard for part in PARTS for shard in index.parts.get(part, ())]
        if index.identity != identity or any(sha256(folder / s.file) != s.sha256 for s in shards[checked]):
            return None
        parts = {part: tuple(load_codes(folder / s.file) for s in index.parts.get(part, ())) for part in PARTS}
        fit = all(_fit(maps, config, num_classes) for maps in [*parts["train"], *parts["validation"]][checked])
        alike = all(len({maps.encodings for maps in own}) == 1 for own in parts.values())
        if not (fit and alike):
            return None
        nats = index.unigram_nats if counted else {part: _counted(own, config.num_codes) for part, own in parts.items()}
        return {part: StoredCodes(own, nats[part]) for part, own in parts.items()}
    except (CheckpointError, OSError):
        return None  # the codes will be extracted anew, which says so


def _counted(shards: Sequence[CodeMaps], num_codes: int) -> tuple[float, ...]:
    """What an index of today holds."""
    return unigram_entropy(torch.stack([code_counts(maps, num_codes) for maps in shards]).sum(0))


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
