"""Images to code maps on disk: extracted once, and used again while model and data are the same."""

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipeline.data import ImageSet, Split
from pipeline.errors import CheckpointError
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter
from pipeline.storage import atomic_folder, load_metadata, load_tensors, save_tensors, verify
from stage1_vqvae import VQVAE, Codes, VQVAEConfig

BATCH = 256  # images encoded or decoded at a time


@plain_dataclass(frozen=True)
class CodeMaps:
    """Codes of many images: one integer tensor (n, height, width) a level, coarsest first, and labels (n,)."""

    levels: Codes
    labels: Int[Tensor, "n"] | None
    views: tuple[Codes, ...] = ()  # the codes of the same images mirrored or moved, to be learned from as well

    def __len__(self) -> int:
        return len(self.levels[0])


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AugmentConfig:
    """What else of each image a prior learns from, so that little data goes further."""

    encodings: int = Field(
        default=1, ge=1, description="Encodings of an image; those after the first are of the image moved by --shift."
    )
    shift: int = Field(default=0, ge=0, description="Pixels at most that an image is moved by, in each direction.")

    @model_validator(mode="after")
    def _go_together(self) -> "AugmentConfig":
        if (self.encodings > 1) != (self.shift > 0):
            raise ValueError(
                f"--encodings {self.encodings} and --shift {self.shift} go together: several encodings of an image "
                "differ by how it was moved"
            )
        return self


class View(NamedTuple):
    """An image as it is, or moved for the number `moved` of its encodings, or mirrored."""

    moved: int
    shift: int
    flip: bool

    def of(self, images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The chosen images, seen so; how far each is moved is a function of (moved, index)."""
        chosen = np.ascontiguousarray(images[indices])
        if self.moved:
            offsets = stream(0, Purpose.SHIFT, self.moved).integers(0, 2 * self.shift + 1, (len(images), 2))
            chosen = _moved(chosen, offsets[indices], self.shift)
        return np.ascontiguousarray(chosen[..., ::-1]) if self.flip else chosen


def _moved(images: np.ndarray, offsets: np.ndarray, shift: int) -> np.ndarray:
    """Cut each image out of itself, with its border repeated all around."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    cut = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    return np.stack(cut)


def views_of(augment: AugmentConfig, flip: bool) -> list[View]:
    """All that a prior learns from; the first is the image as it is."""
    return [
        View(moved, augment.shift, mirror) for moved in range(augment.encodings) for mirror in (False, True)[: 1 + flip]
    ]


AS_IT_IS = View(0, 0, False)


@plain_dataclass(frozen=True)
class Encoder:
    """Turns images of a set into codes, shared out over the processes; each returns all of them, on the CPU."""

    model: VQVAE
    images: ImageSet
    accelerator: Accelerator
    reporter: Reporter

    def maps(self, indices: np.ndarray, views: Sequence[View]) -> CodeMaps:
        """The chosen images in all views, with their labels."""
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels[indices])
        levels, *others = (self.codes(indices, view) for view in views)
        return CodeMaps(levels, labels, tuple(others))

    def codes(self, indices: np.ndarray, view: View = AS_IT_IS) -> Codes:
        """The chosen images in one view."""
        shares = self.accelerator.num_processes
        padded = np.resize(indices, -(-len(indices) // shares) * shares)  # repeats the first images to fill up
        batches = _batches(padded.reshape(shares, -1)[self.accelerator.process_index])
        steps = self.reporter.steps(range(len(batches)), "encode")
        parts = [self._encode(view.of(self.images.images, batches[step])) for step in steps]
        levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        whole = [
            self.accelerator.gather(level.to(self.accelerator.device)) if shares > 1 else level for level in levels
        ]
        dtype = code_dtype(self.model.config)
        return tuple(level[: len(indices)].to("cpu", dtype) for level in whole)

    def _encode(self, images: np.ndarray) -> Codes:
        batch = torch.from_numpy(images).to(self.model.data_variance.device)
        return tuple(level.cpu() for level in self.model.encode(batch))


def _batches(indices: np.ndarray) -> list[np.ndarray]:
    return [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]


def code_dtype(config: VQVAEConfig) -> torch.dtype:
    """int16 where every code fits, else int32; float32 where codes are numbers."""
    if not config.is_discrete:
        return torch.float32
    return torch.int16 if config.num_codes <= 2**15 else torch.int32


def extract(
    folder: Path, encoder: Encoder, identity: dict[str, str], parts: Split, views: Sequence[View]
) -> dict[str, CodeMaps]:
    """Encode both parts of the split, the one to be trained on in all `views`, write them to `folder`, return them.

    `identity` says what the codes depend on: the weights' hash, the data's fingerprint, the views. What the folder held
    of another identity is moved aside.
    """
    maps = {"train": encoder.maps(parts.train, views), "held_out": encoder.maps(parts.held_out, [AS_IT_IS])}
    if encoder.accelerator.is_main_process:
        _write(folder, maps, identity)
    encoder.accelerator.wait_for_everyone()
    return maps


def _write(folder: Path, maps: dict[str, CodeMaps], identity: dict[str, str]) -> None:
    if folder.exists():
        number = next(i for i in count(1) if not folder.with_name(f"{folder.name}-old-{i}").exists())
        folder.rename(folder.with_name(f"{folder.name}-old-{number}"))
    with atomic_folder(folder) as unfinished:
        for name, part in maps.items():
            save_codes(unfinished / f"{name}.safetensors", part, identity)


def read_current(folder: Path, identity: dict[str, str]) -> dict[str, CodeMaps] | None:
    """The code maps in a folder, if it holds undamaged ones of this identity."""
    try:
        verify(folder)
        if load_metadata(folder / "train.safetensors") != identity:
            return None
    except CheckpointError:
        return None  # they will be extracted anew, which says so
    return {name: load_codes(folder / f"{name}.safetensors") for name in Split._fields}


def unigram_entropy(codes: Tensor, num_codes: int) -> float:
    """Entropy in nats of a code drawn by frequency alone: what a prior that knows no context would cost."""
    frequencies = torch.bincount(codes.flatten().long(), minlength=num_codes).double() / codes.numel()
    return float(torch.special.entr(frequencies).sum())


def save_codes(path: Path, maps: CodeMaps, metadata: dict[str, str]) -> None:
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
