"""Codes of many images as tensors, and a file of them, whose tensors are mapped into memory when it is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.storage import load_tensors, save_tensors
from stage1_vqvae import Codes, VQVAEConfig


@dataclass(frozen=True)
class CodeMaps:
    """Codes of many images: one integer tensor (n, height, width) a level, coarsest first, and labels (n,)."""

    levels: Codes
    labels: Int[Tensor, "n"] | None
    views: tuple[Codes, ...] = ()  # the codes of the same images mirrored or moved, to be learned from as well

    def __len__(self) -> int:
        return len(self.levels[0])

    @property
    def encodings(self) -> int:
        """In how many views each image is."""
        return 1 + len(self.views)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the map of each level."""
        return tuple((level.shape[1], level.shape[2]) for level in self.levels)

    def rows(
        self, items: Int[np.ndarray, "m"], levels: int, encodings: Int[np.ndarray, "m"] | None = None
    ) -> "CodeMaps":
        """A copy of the maps of these images, of so many levels from the coarsest on: of the images as they are, or
        each in the view of its number in `encodings`, where 0 is as it is."""
        rows = torch.from_numpy(items)
        chosen = [level[rows] for level in self.levels[:levels]]
        for number, view in enumerate(self.views if encodings is not None else (), 1):
            seen = torch.from_numpy(encodings == number)
            for codes, level in zip(chosen, view[:levels], strict=True):
                codes[seen] = level[rows[seen]]
        return CodeMaps(tuple(chosen), None if self.labels is None else self.labels[rows])


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
    save_tensors(path, tensors_of(maps), metadata)


def tensors_of(maps: CodeMaps) -> dict[str, Tensor]:
    """What a file of code maps holds, by name."""
    tensors = {f"level{i}": level for i, level in enumerate(maps.levels)}
    for number, view in enumerate(maps.views, 1):
        tensors |= {f"view{number}.level{i}": level for i, level in enumerate(view)}
    return tensors if maps.labels is None else {**tensors, "labels": maps.labels}


def load_codes(path: Path) -> CodeMaps:
    """Read code maps, which are mapped into memory. Raises CheckpointError when the file is not one of code maps, or of
    no whole ones."""
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
