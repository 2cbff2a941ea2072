"""Images to code maps on disk: extracted once, and used again while model and data are the same."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from pipeline import processes
from pipeline.arithmetic import exact_products
from pipeline.config.training import AugmentConfig
from pipeline.data.codes.maps import CodeMaps, code_dtype, join_levels, load_codes
from pipeline.data.codes.shards import (
    PARTS,
    Shard,
    StoredCodes,
    code_counts,
    read_index,
    read_shard,
    unigram_entropy,
    write_index,
    write_shard,
)
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import Split
from pipeline.errors import CheckpointError
from pipeline.randomness import shifts
from pipeline.reporting import Reporter
from pipeline.storage import remove_unfinished, sha256
from stage1_vqvae import VQVAE, Codes

_PIXELS = 2**22  # of images encoded at a time, 256 of them at most
SHARD_BYTES = 2**24  # of code maps in a file, about: minutes of encoding, which is what a crash costs at most
_SHARDS = 64  # at least, where there are images for so many: each process has its share of them
_LEAST_IMAGES = 256  # of a shard, but for the last


class View(NamedTuple):
    """An image as it is, or moved for the number `moved` of its encodings, or mirrored."""

    moved: int
    shift: int
    flip: bool

    def of(self, images: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The chosen images, seen so; how far each is moved is a function of (moved, index)."""
        chosen = np.ascontiguousarray(images[indices])
        if self.moved:
            offsets = shifts(self.moved, 2 * self.shift + 1, len(images))[indices]
            chosen = _moved(chosen, offsets.astype(np.int64), self.shift)
        return np.ascontiguousarray(chosen[..., ::-1]) if self.flip else chosen


def _moved(images: np.ndarray, offsets: np.ndarray, shift: int) -> np.ndarray:
    """Cut each image out of itself, with its border repeated all around."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    cut = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    return np.stack(cut)


AS_IT_IS = View(0, 0, False)


def views_of(augment: AugmentConfig, flip: bool) -> list[View]:
    """All that a prior learns from; the first is the image as it is."""
    return [
        View(moved, augment.shift, mirror) for moved in range(augment.encodings) for mirror in (False, True)[: 1 + flip]
    ]


@dataclass(frozen=True)
class Encoder:
    """Turns images of a set into codes, on the CPU, in the small type that they are stored in."""

    network: VQVAE
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
        size = max(1, min(256, _PIXELS // (self.network.config.height * self.network.config.width)))
        batches = (indices[start : start + size] for start in range(0, len(indices), size))
        return join_levels(self._encode(view.of(self.images.images, batch)) for batch in batches)

    def _encode(self, images: np.ndarray) -> Codes:
        batch, dtype = torch.from_numpy(images).to(self.network.data_variance.device), code_dtype(self.network.config)
        with exact_products(batch.device):
            return tuple(level.to(dtype).cpu() for level in self.network.encode(batch))


class _Planned(NamedTuple):
    """A shard to be: the part that it belongs to, its file, and the images in it, of which `first` are before it."""

    part: str
    file: str
    first: int
    indices: Int[np.ndarray, "n"]
    views: Sequence[View]

    def stamp(self, identity: dict[str, str]) -> dict[str, str]:
        """By what a file is known to be this shard."""
        return {**identity, "shard": self.file, "first": str(self.first), "maps": str(len(self.indices))}


class _Found(NamedTuple):
    """What a process knows of its shards once they are on the disk: zeros stand for those of other processes."""

    counts: Int[Tensor, "parts levels codes"]
    hashes: Int[Tensor, "shards 4"]


def extract(
    folder: Path, encoder: Encoder, identity: dict[str, str], parts: Split, views: Sequence[View]
) -> dict[str, StoredCodes]:
    """Encode the training part in all `views` and the validation part into `folder`, and open what is there.

    Each process encodes and writes shards of its own; how the images are cut into shards does not depend on the number
    of processes. `identity` says what the codes depend on: hashes of the network and the split, the data's
    fingerprint, the views. What the folder holds of another identity is moved aside; shards that a killed extraction
    left are used again.
    """
    accelerator, what = encoder.accelerator, f"the codes in {folder}"
    processes.on_main(accelerator, lambda: _make_room(folder, identity))
    planned = [
        *_planned("train", parts.train, views, encoder),
        *_planned("validation", parts.validation, [AS_IT_IS], encoder),
    ]
    own = processes.alike(accelerator, lambda: _own_shards(folder, encoder, identity, planned), lambda _: "", what)
    found = _Found(*(accelerator.reduce(numbers.to(accelerator.device), "sum").cpu() for numbers in own))
    shards: dict[str, list[Shard]] = {part: [] for part in PARTS}
    for shard, digest in zip(planned, found.hashes, strict=True):
        described = Shard(file=shard.file, maps=len(shard.indices), sha256=digest.numpy().tobytes().hex())
        shards[shard.part].append(described)
    nats = {part: unigram_entropy(counts) for part, counts in zip(PARTS, found.counts, strict=True)}
    processes.on_main(accelerator, lambda: write_index(folder, identity, shards, nats))

    def opened() -> dict[str, StoredCodes]:
        files = {part: tuple(load_codes(folder / shard.file) for shard in own) for part, own in shards.items()}
        return {part: StoredCodes(own, nats[part]) for part, own in files.items()}

    return processes.alike(accelerator, opened, lambda _: "", what)


def _own_shards(folder: Path, encoder: Encoder, identity: dict[str, str], planned: Sequence[_Planned]) -> _Found:
    """Write those shards of this process that are not there; look at those that are."""
    config, accelerator = encoder.network.config, encoder.accelerator
    counts = torch.zeros(len(PARTS), config.levels, config.num_codes, dtype=torch.int64)
    hashes = torch.zeros(len(planned), 4, dtype=torch.int64)

    def note(number: int, maps: CodeMaps) -> None:
        shard = planned[number]
        counts[PARTS.index(shard.part)] += code_counts(maps, config.num_codes)
        digest = bytearray.fromhex(sha256(folder / shard.file))
        hashes[number] = torch.frombuffer(digest, dtype=torch.int64)

    missing = []
    for number in range(accelerator.process_index, len(planned), accelerator.num_processes):
        there = read_shard(folder, planned[number].file, planned[number].stamp(identity))
        missing.append(number) if there is None else note(number, there)
    for step in encoder.reporter.steps(range(len(missing)), "encode"):
        shard = planned[missing[step]]
        maps = encoder.maps(shard.indices, shard.views)
        write_shard(folder, shard.file, maps, shard.stamp(identity))
        note(missing[step], maps)
    return _Found(counts, hashes)


def _planned(part: str, indices: np.ndarray, views: Sequence[View], encoder: Encoder) -> Iterable[_Planned]:
    """The shards of a part, in order: as large as a file may be, or as many as processes may want."""
    config = encoder.network.config
    image = len(views) * sum(rows * columns for rows, columns in config.grids) * code_dtype(config).itemsize
    size = max(1, min(SHARD_BYTES // image, max(_LEAST_IMAGES, -(-len(indices) // _SHARDS))))
    for number, first in enumerate(range(0, len(indices), size)):
        yield _Planned(part, f"{part}-{number:05d}.safetensors", first, indices[first : first + size], views)


def _make_room(folder: Path, identity: dict[str, str]) -> None:
    """Make the folder, once finished codes of another identity are moved aside."""
    try:
        other = read_index(folder).identity != identity
    except CheckpointError:
        other = False  # no finished codes: shards say themselves what they are of
    if other:
        number = next(i for i in count(1) if not folder.with_name(f"{folder.name}-old-{i}").exists())
        folder.rename(folder.with_name(f"{folder.name}-old-{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
