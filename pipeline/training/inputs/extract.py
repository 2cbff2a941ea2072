"""Images to code maps on disk: extracted once, and used again while model and data are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from pipeline import processes
from pipeline.arithmetic import exact_products
from pipeline.config.training import AugmentConfig
from pipeline.data.code_maps import (
    PARTS,
    CodeMaps,
    code_dtype,
    join,
    join_levels,
    read_index,
    read_shard,
    write_index,
    write_shard,
)
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import Split
from pipeline.errors import CheckpointError
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter
from pipeline.storage import remove_unfinished
from stage1_vqvae import VQVAE, Codes

_PIXELS = 2**22  # of images encoded at a time, 256 of them at most
SHARD_BYTES = 2**24  # of code maps in a file, about: minutes of encoding, which is what a crash costs at most


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


AS_IT_IS = View(0, 0, False)


def views_of(augment: AugmentConfig, flip: bool) -> list[View]:
    """All that a prior learns from; the first is the image as it is."""
    return [
        View(moved, augment.shift, mirror) for moved in range(augment.encodings) for mirror in (False, True)[: 1 + flip]
    ]


@dataclass(frozen=True)
class Encoder:
    """Turns images of a set into codes, divided over the processes; each returns all of them, on the CPU."""

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
        world_size = self.accelerator.num_processes
        padded = np.resize(indices, -(-len(indices) // world_size) * world_size)  # repeats the first images to fill up
        own = padded.reshape(world_size, -1)[self.accelerator.process_index]
        size = max(1, min(256, _PIXELS // (self.network.config.height * self.network.config.width)))
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        steps = self.reporter.steps(range(len(batches)), "encode")
        parts = [self._encode(view.of(self.images.images, batches[step])) for step in steps]
        levels = join_levels(parts)
        if world_size > 1:
            levels = tuple(self.accelerator.gather(level.to(self.accelerator.device)) for level in levels)
        dtype = code_dtype(self.network.config)
        return tuple(level[: len(indices)].to("cpu", dtype) for level in levels)

    def _encode(self, images: np.ndarray) -> Codes:
        batch = torch.from_numpy(images).to(self.network.data_variance.device)
        with exact_products(batch.device):
            return tuple(level.cpu() for level in self.network.encode(batch))


def extract(
    folder: Path, encoder: Encoder, identity: dict[str, str], parts: Split, views: Sequence[View]
) -> dict[str, CodeMaps]:
    """Encode the training part in all `views` and the validation part, write them to `folder`, return them.

    `identity` says what the codes depend on: hashes of the network and the split, the data's fingerprint, the views.
    What the folder holds of another identity is moved aside; shards that a killed extraction left are used again.
    """
    accelerator = encoder.accelerator
    processes.on_main(accelerator, lambda: _make_room(folder, identity))
    maps: dict[str, CodeMaps] = {}
    files: dict[str, dict[str, int]] = {}
    for part in PARTS:
        indices, seen = getattr(parts, part), views if part == "train" else [AS_IT_IS]
        shards = _cut(indices, encoder.network, len(seen))
        read = [
            _encoded(folder, f"{part}-{number:05d}.safetensors", encoder, identity, shard, seen)
            for number, shard in enumerate(shards)
        ]
        maps[part] = join(read)
        files[part] = {f"{part}-{number:05d}.safetensors": len(shard) for number, shard in enumerate(shards)}
    processes.on_main(accelerator, lambda: write_index(folder, identity, files))
    return maps


def _encoded(
    folder: Path,
    file: str,
    encoder: Encoder,
    identity: dict[str, str],
    indices: np.ndarray,
    views: Sequence[View],
) -> CodeMaps:
    """A shard that is there, or else one that is encoded now and written."""
    stamp = {**identity, "shard": file, "maps": str(len(indices))}
    there = read_shard(folder, file, stamp)
    if processes.true_on_all(encoder.accelerator, there is not None):
        assert there is not None
        return there
    maps = encoder.maps(indices, views)
    processes.on_main(encoder.accelerator, lambda: write_shard(folder, file, maps, stamp))
    return maps


def _cut(indices: np.ndarray, network: VQVAE, views: int) -> list[np.ndarray]:
    """Indices of the maps of each shard."""
    codes = sum(rows * columns for rows, columns in network.config.grids)
    per_shard = max(1, SHARD_BYTES // (views * codes * code_dtype(network.config).itemsize))
    return [indices[start : start + per_shard] for start in range(0, len(indices), per_shard)]


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
