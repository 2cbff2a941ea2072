"""Images to code maps on disk: extracted once, and used again while model and data are the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from pipeline.data import ImageSet, Split
from pipeline.errors import CheckpointError
from pipeline.storage import atomic_folder, load_metadata, load_tensors, save_tensors, verify
from stage1_vqvae import VQVAE, Codes, VQVAEConfig

BATCH = 256  # images encoded or decoded at a time


@dataclass(frozen=True)
class CodeMaps:
    """Codes of many images: one integer tensor (n, height, width) a level, coarsest first, and labels (n,)."""

    levels: Codes
    labels: Int[Tensor, "n"] | None
    flipped: Codes = ()  # the codes of the mirrored images, where a run trains on both

    def __len__(self) -> int:
        return len(self.levels[0])


def encode_images(
    model: VQVAE, images: np.ndarray, indices: np.ndarray, accelerator: Accelerator, *, flip: bool = False
) -> Codes:
    """Codes of the chosen images, shared out over the processes; every process returns all of them, on the CPU."""
    shares = accelerator.num_processes
    padded = np.resize(indices, -(-len(indices) // shares) * shares)  # repeats the first images to fill up
    mine = padded.reshape(shares, -1)[accelerator.process_index]
    parts = [_encode(model, images[chosen], flip) for chosen in _batches(mine)]
    levels = [torch.cat(level) for level in zip(*parts, strict=True)]
    whole = [accelerator.gather(level.to(accelerator.device)) if shares > 1 else level for level in levels]
    dtype = code_dtype(model.config)
    return tuple(level[: len(indices)].to("cpu", dtype) for level in whole)


def _encode(model: VQVAE, images: np.ndarray, flip: bool) -> Codes:
    device = model.data_variance.device
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return tuple(level.cpu() for level in model.encode(batch.flip(-1) if flip else batch))


def _batches(indices: np.ndarray) -> Iterator[np.ndarray]:
    return (indices[start : start + BATCH] for start in range(0, len(indices), BATCH))


def code_dtype(config: VQVAEConfig) -> torch.dtype:
    """int16 where every code fits, else int32; float32 where codes are numbers."""
    if not config.is_discrete:
        return torch.float32
    return torch.int16 if config.num_codes <= 2**15 else torch.int32


def extract(
    folder: Path,
    model: VQVAE,
    identity: dict[str, str],
    images: ImageSet,
    parts: Split,
    accelerator: Accelerator,
) -> dict[str, CodeMaps]:
    """Encode both parts of the split, write them to `folder`, and return them.

    `identity` says what the codes depend on: the weights' hash, the data's fingerprint, flips. What the folder held
    of another identity is moved aside.
    """
    maps = {
        name: _encode_part(model, images, part, accelerator, flip=name == "train" and identity["flip"] == "yes")
        for name, part in parts._asdict().items()
    }
    if accelerator.is_main_process:
        _write(folder, maps, identity)
    accelerator.wait_for_everyone()
    return maps


def _encode_part(model: VQVAE, images: ImageSet, part: np.ndarray, accelerator: Accelerator, *, flip: bool) -> CodeMaps:
    levels = encode_images(model, images.images, part, accelerator)
    labels = None if images.labels is None else torch.from_numpy(images.labels[part])
    flipped = encode_images(model, images.images, part, accelerator, flip=True) if flip else ()
    return CodeMaps(levels, labels, flipped)


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
    """Write code maps as `level0`, `level1`, ..., `labels` (and `flipped0`, ... for the mirrored images)."""
    tensors = {f"level{i}": level for i, level in enumerate(maps.levels)}
    tensors |= {f"flipped{i}": level for i, level in enumerate(maps.flipped)}
    if maps.labels is not None:
        tensors["labels"] = maps.labels
    save_tensors(path, tensors, metadata)


def load_codes(path: Path) -> CodeMaps:
    """Read code maps. Raises CheckpointError when the file is not one of code maps."""
    tensors = load_tensors(path)
    levels, flipped = _numbered(tensors, "level"), _numbered(tensors, "flipped")
    if not levels:
        raise CheckpointError(f"{path} holds no code maps (no tensor 'level0', but {sorted(tensors)[:5]})")
    return CodeMaps(levels, tensors.get("labels"), flipped)


def _numbered(tensors: dict[str, Tensor], prefix: str) -> Codes:
    names = takewhile(tensors.__contains__, (f"{prefix}{index}" for index in count()))
    return tuple(tensors[name] for name in names)
