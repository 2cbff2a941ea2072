"""What images become, for use elsewhere: code histograms, pooled encoder outputs, latents; as arrays or as a file."""

import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from pipeline.data.tensor_file import ArrayKind, TensorFile
from pipeline.errors import UsageError, stage_errors_as_usage
from pipeline.reporting import Reporter, Silent
from pipeline.resources import check_disk, check_memory
from pipeline.sampling.inputs import Images, as_array, batch_of, check_images
from pipeline.sampling.model import Model, loaded
from pipeline.storage import atomic_file, check_paths
from stage1_vqvae.features import image_features

SUFFIXES = (".safetensors", ".npz")


def features(
    run: str | Path | Model | None,
    images: Images,
    *,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Features of images, uint8 (n, c, h, w), under the stage 1 of a run (a folder, a loaded one, or by default the
    newest), by name.

    `encoder`, float32 (n, hidden, 2, 2): the encoder's outputs, averaged over each quarter of the image. Of each level
    `vectors0`, float32 (n, dim, 2, 2): the same of the vectors before the bottleneck; and of integer codes
    `histogram0`, int32 (n, num_codes): how often each occurs. Of continuous bottlenecks `latents`, float32 (n, dim,
    rows, columns). Raises UsageError, also where the images do not fit, CheckpointError, and ResourceError where memory
    does not hold the result: `features_file` needs none.
    """
    work = _begin(run, images, device)
    check_memory(torch.device("cpu"), work.bytes, work.in_words, "write them into a file: features_file()")
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in work.kinds.items()}
    for first, rows in work.batches(reporter):
        for name, own in rows.items():
            arrays[name][first : first + len(own)] = own
    return arrays


def features_file(
    run: str | Path | Model | None,
    images: Images,
    out: str | Path,
    *,
    names: Sequence[str] = (),
    labels: Int[np.ndarray, "n"] | None = None,
    class_names: Sequence[str] = (),
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> dict[str, tuple[int, ...]]:
    """Write what `features` gives into a new file, .safetensors or .npz, a batch at a time; returns shapes by name.

    Beside the features are `labels`, int64 (n,), where they are given, and as text `names`, one an image,
    `class_names`, and `codes_sha256`, which says under what encoder the features were made: in a .safetensors file
    metadata, the lists as JSON; in a .npz file arrays. Raises UsageError, CheckpointError, and ResourceError where the
    disk does not hold it.
    """
    check_paths(out=out)
    target, work = Path(out), _begin(run, images, device)
    lists, codes_sha256 = {"names": names, "class_names": class_names}, work.model.vqvae.codes_sha256
    _check(target, len(work.images), lists, labels)
    lists = {name: list(own) for name, own in lists.items() if len(own)}
    # Of a .npz all is on the disk twice, for a while, since its arrays have to be written one after another.
    check_disk(
        target, work.bytes * (1 + (target.suffix == ".npz")), work.in_words, "give fewer images, or another --out"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as unfinished, unfinished.open("w+b") as file:
        if target.suffix == ".safetensors":
            metadata = {name: json.dumps(own) for name, own in lists.items()}
            _write(work, file, labels, metadata | {"codes_sha256": codes_sha256}, reporter)
        else:
            with tempfile.TemporaryFile(dir=target.parent) as scratch:
                written = _write(work, scratch, labels, {}, reporter)
                texts = {name: np.array(own) for name, own in {**lists, "codes_sha256": codes_sha256}.items()}
                _write_npz(file, written.mapped() | texts)
    return {name: kind.shape for name, kind in work.kinds.items()}


def _check(target: Path, n: int, texts: Mapping[str, Sequence[str]], labels: Int[np.ndarray, "n"] | None) -> None:
    """Raise UsageError with all that does not fit."""
    problems = [] if target.suffix in SUFFIXES else [f"{target} must end in {' or '.join(SUFFIXES)}"]
    problems += [f"{target} exists already; choose another name"] if target.exists() else []
    problems += [
        f"{name} must be a list of texts; got {type(own).__name__}: {own!r:.60}"
        for name, own in texts.items()
        if isinstance(own, str) or not (isinstance(own, Sequence) and all(isinstance(one, str) for one in own))
    ]
    if not problems and len(texts["names"]) not in (0, n):
        problems.append(f"there are {len(texts['names']):,} names for {n:,} images")
    if labels is not None:
        array = as_array(labels, "labels")
        if array.shape != (n,) or array.dtype.kind not in "iu":
            problems.append(f"labels must be {n:,} whole numbers, one an image; got {array.dtype} {array.shape}")
    if problems:
        raise UsageError("\n".join(problems))


class _Work(NamedTuple):
    """Images, and what their features will be."""

    model: Model
    images: Images
    kinds: Mapping[str, ArrayKind]

    @property
    def bytes(self) -> int:
        """What all features take."""
        return sum(kind.bytes for kind in self.kinds.values())

    @property
    def in_words(self) -> str:
        """What they are, as errors say it."""
        return f"holding features of {len(self.images):,} images"

    def batches(self, reporter: Reporter | None) -> Iterator[tuple[int, dict[str, Shaped[np.ndarray, "m ..."]]]]:
        """The features of a few images at a time, with the index of the first of these."""
        size = self.model.images_at_a_time
        for step in (reporter or Silent()).steps(range(-(-len(self.images) // size)), "encode"):
            yield step * size, _features_of(self.model, batch_of(self.images, step * size, size))


def _begin(run: str | Path | Model | None, images: Images, device: str | torch.device | None) -> _Work:
    model = loaded(run, "vqvae", device, decoder=None if isinstance(run, Model) else "plain")  # which has no part in it
    given, config = check_images(images, model.vqvae.config.model), model.vqvae.config.model
    if not len(given):
        raise UsageError("there are no images to encode; give one at least")
    one = _features_of(model, torch.zeros(1, config.channels, config.height, config.width, dtype=torch.uint8))
    return _Work(model, given, {name: ArrayKind(own.dtype, (len(given), *own.shape[1:])) for name, own in one.items()})


def _features_of(model: Model, batch: UInt8[Tensor, "m c h w"]) -> dict[str, Shaped[np.ndarray, "m ..."]]:
    with stage_errors_as_usage(), model.arithmetic():
        found = image_features(model.vqvae.network, batch.to(model.device))
    return {name: own.cpu().numpy() for name, own in found.items()}


def _write(
    work: _Work,
    file: BinaryIO,
    labels: Int[np.ndarray, "n"] | None,
    metadata: Mapping[str, str],
    reporter: Reporter | None,
) -> TensorFile:
    """Fill a new file with the features, and the labels if there are any."""
    beside = {} if labels is None else {"labels": as_array(labels, "labels").astype(np.int64)}
    kinds = {name: ArrayKind(own.dtype, own.shape) for name, own in beside.items()}
    written = TensorFile(file, {**work.kinds, **kinds}, metadata)
    for name, own in beside.items():
        written.write(name, 0, own)
    for first, rows in work.batches(reporter):
        for name, own in rows.items():
            written.write(name, first, own)
    return written


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """What numpy.savez writes, with nothing pickled; equal arrays make equal bytes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
