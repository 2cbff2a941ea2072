"""Every way images come in; what goes on is one uint8 array (n, channels, height, width) with labels."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import resources
from pipeline.config.data import EMBEDDED, NAMED, DataConfig
from pipeline.data import cache, mapped, pixels
from pipeline.data.datasets import EMBEDDED_NAMES, embedded_digits, torchvision_dataset
from pipeline.data.decoding import Plan, decode_into, plan_for
from pipeline.data.pixels import channels
from pipeline.data.sources import UNREADABLE, Source, label_by_folder, open_source
from pipeline.errors import DataError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.storage import atomic_folder

MOST_CLASSES = 2**20
_LISTED = 10  # bad files named in an error
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ImageSet:
    """Decoded images, in memory or memory-mapped, with what is known of them."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, "n"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the files, where there are any
    passed_over: str = ""  # files that are no images, by their suffixes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width


def load_images(config: DataConfig, *, shared: bool = False, reporter: Reporter | None = None) -> ImageSet:
    """Decode what `config.data` names.

    `shared`: put the pixels into a memory-mapped file even if they are few, so that the processes of a machine
    hold them once; the caller lets one process go first. Raises DataError, and ResourceError where neither memory nor
    disk can hold them.
    """
    reporter = reporter or reporter_for_api()
    if config.data == EMBEDDED:
        return from_array(*embedded_digits(), EMBEDDED_NAMES, config)
    if config.data in NAMED:
        return from_array(*torchvision_dataset(config.data, reporter, train=True), config)
    source = open_source(Path(config.data).expanduser(), config.max_bytes)
    return _from_files(source, config, reporter, shared=shared)


def load_test_images(config: DataConfig, shape: tuple[int, int, int], *, reporter: Reporter | None = None) -> ImageSet:
    """Decode the official test part that `config.test_data` names, in the shape (channels, height, width) of the images
    trained on. Raises DataError and ResourceError."""
    assert config.test_data is not None
    channels, height, width = shape
    alike = replace(config, image_size=f"{height}x{width}", colour="grey" if channels == 1 else "colour")
    if config.test_data in NAMED:
        return from_array(*torchvision_dataset(config.test_data, reporter or reporter_for_api(), train=False), alike)
    return load_images(replace(alike, data=config.test_data), reporter=reporter)


def test_files_fingerprint(test_data: str) -> str:
    """The hash of what `test_data` names, which is not decoded: the name, or the names and bytes of its files.

    Raises DataError where there are none, or one cannot be read.
    """
    if test_data in NAMED:
        return hashlib.sha256(test_data.encode()).hexdigest()
    source, digest = open_source(Path(test_data), sys.maxsize), hashlib.sha256()
    for name in source.names:
        digest.update(f"{name}\n".encode())
        own = hashlib.sha256()
        try:
            for piece in source.pieces(name):
                own.update(piece)
        except UNREADABLE as error:
            raise DataError(f"{name} in {test_data} cannot be read ({error}); repair or delete it") from error
        digest.update(own.digest())
    return digest.hexdigest()


def from_array(
    images: UInt8[np.ndarray, "n c h w"] | Tensor,
    labels: Int[np.ndarray, "n"] | Tensor | None,
    class_names: tuple[str, ...],
    config: DataConfig,
) -> ImageSet:
    """Images that are decoded already: cut to the configured size and colour. Raises DataError and ResourceError."""
    array, labels = _as_array(images), None if labels is None else _as_array(labels)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise DataError(f"images must be uint8 (n, 1 or 3, height, width); got {array.dtype} {array.shape}")
    if labels is not None:
        _check_labels(labels, len(array))
    height, width = config.size() if config.image_size else array.shape[2:]
    colour = config.colour if config.colour != "auto" else ("grey" if array.shape[1] == 1 else "colour")
    if array.shape[1:] != (channels(colour), height, width):
        array = _fitted(array, (len(array), channels(colour), height, width))
    kept = labels.astype(np.int64) if labels is not None and config.labels else None
    names = class_names or tuple(str(i) for i in range(0 if kept is None else int(kept.max()) + 1))
    return ImageSet(array, kept, names if kept is not None else (), fingerprint(array, kept))


def _as_array(given: np.ndarray | Tensor) -> np.ndarray:
    try:
        return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"images and targets must be arrays or tensors of whole numbers ({reason})") from error


def _fitted(images: UInt8[np.ndarray, "n c h w"], shape: tuple[int, int, int, int]) -> UInt8[np.ndarray, "n c2 h2 w2"]:
    resources.check_memory(_CPU, math.prod(shape), _in_words(shape), "choose a smaller --image-size")
    fitted, (_, depth, height, width) = np.empty(shape, np.uint8), shape
    for row, image in zip(fitted, images, strict=True):
        row[:] = pixels.fit(pixels.to_pil(image), height, width, "grey" if depth == 1 else "colour")
    return fitted


def _in_words(shape: tuple[int, int, int, int]) -> str:
    n, *one = shape
    return f"holding {n:,} images of {' x '.join(map(str, one))}"


def _check_labels(labels: np.ndarray, n: int) -> None:
    if labels.shape != (n,):
        raise DataError(f"{n} images but labels of shape {labels.shape}; give one number per image")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels must be whole numbers from 0 on; got {labels.dtype}, such as {labels[0]!r}")
    if labels.max() >= MOST_CLASSES:
        raise DataError(f"labels must be below {MOST_CLASSES:,}, the most classes there may be; got {labels.max()}")
    if labels.min() < 0:
        raise DataError(
            f"labels must be whole numbers from 0 on; got {labels.min()} (all images have a class, or none has)"
        )


def fingerprint(images: UInt8[np.ndarray, "n c h w"], labels: Int[np.ndarray, "n"] | None) -> str:
    """sha256 of the pixels, their shape and the labels: what a run was trained on, whatever the files are called."""
    digest = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), size := images_at_a_time(images)):
        digest.update(images[start : start + size].tobytes())
    if labels is not None:
        digest.update(labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def images_at_a_time(images: UInt8[np.ndarray, "n c h w"]) -> int:
    """Images whose pixels are looked at together: 16 MiB of them, which counting turns into eight times as much."""
    return max(1, 2**24 // images[0].size)


def _from_files(source: Source, config: DataConfig, reporter: Reporter, *, shared: bool) -> ImageSet:
    size = config.size() if config.image_size else None
    with pixels.decoders(config.max_pixels):
        plan = plan_for(source, size, None if config.colour == "auto" else config.colour)
        shape = plan.shape(len(source.names))
        if not shared and math.prod(shape) <= config.memory_gib * 2**30:
            remedy = "choose a smaller --image-size, or a smaller --memory-gib: then they lie in a file of the cache"
            resources.check_memory(_CPU, math.prod(shape), _in_words(shape), remedy)
            array = np.empty(shape, np.uint8)
            decoded = _labelled(source, config, array, decode_into(array, source, plan))
        else:
            decoded = _from_cache(source, config, plan, reporter)
    others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.passed_over)
    return replace(decoded, passed_over=others)


def _labelled(source: Source, config: DataConfig, array: np.ndarray, bad: dict[int, str]) -> ImageSet:
    skipped = tuple(f"{source.names[index]}: {reason}" for index, reason in bad.items())
    if bad and (config.on_bad_image == "error" or len(bad) == len(source.names)):
        listed = "\n".join(f"  {line}" for line in skipped[:_LISTED])
        raise DataError(
            f"{len(bad)} of {len(source.names)} images in {config.data} cannot be read. Repair or delete "
            f"them; a training skips unreadable images with --on-bad-image skip:\n{listed}"
        )
    good = np.delete(np.arange(len(source.names)), list(bad))
    labelling = label_by_folder(tuple(source.names[i] for i in good)) if config.labels else None
    names = () if labelling is None else labelling.class_names
    labels = None if labelling is None else np.asarray(labelling.labels, dtype=np.int64)
    kept = _moved_up(array, good) if bad else array
    files = tuple(source.names[index] for index in good)
    return ImageSet(kept, labels, names, fingerprint(kept, labels), skipped, files)


def _moved_up(array: UInt8[np.ndarray, "n c h w"], rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
    """These rows, in rising order, moved to the beginning: the array may be larger than memory."""
    for start in range(0, len(rows), size := images_at_a_time(array)):
        part = rows[start : start + size]
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


def _from_cache(source: Source, config: DataConfig, plan: Plan, reporter: Reporter) -> ImageSet:
    """Open the memory-mapped pixels of these files, decoding them first if nobody has."""
    decides = f"{source.stamp}\n{plan}\n{config.labels} {config.on_bad_image} {config.max_pixels}"
    key = hashlib.sha256(decides.encode()).hexdigest()[:32]
    folder = cache.decoded_folder() / key
    there = _opened(folder)
    if there is not None:
        return there
    with cache.alone_with(key, reporter):
        decoded = _opened(folder)  # perhaps the command that was waited for has decoded them
        if decoded is None:
            shutil.rmtree(folder, ignore_errors=True)  # what does not open whole
            shape = plan.shape(len(source.names))
            cache.remove_orphans(key)
            cache.make_room(math.prod(shape), _in_words(shape))
            # Another machine with the same home may decode the same files: whoever is first is right.
            with contextlib.suppress(FileExistsError), atomic_folder(folder) as unfinished:
                _decode_to_folder(unfinished, source, config, plan)
            decoded = _opened(folder)
    if decoded is None:
        raise DataError(f"{folder} was removed or damaged meanwhile; try again, or `gen cache --clear` first")
    return decoded


def _opened(folder: Path) -> ImageSet | None:
    """The decoded set in a folder of the cache; None where there is none, it is being removed, or it is damaged."""
    try:
        about = json.loads((folder / cache.ABOUT).read_text())
        labels = np.load(folder / cache.LABELS) if about["class_names"] else None
        array = mapped.open_held(folder / cache.IMAGES)
        class_names, skipped, names = (tuple(about[name]) for name in ("class_names", "skipped", "names"))
        found = ImageSet(array, labels, class_names, about["fingerprint"], skipped, names)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    with contextlib.suppress(PermissionError):  # of a cache that others fill
        os.utime(folder)  # it was used now
    return found


def _decode_to_folder(folder: Path, source: Source, config: DataConfig, plan: Plan) -> None:
    array = mapped.lay_out(folder / cache.IMAGES, plan.shape(len(source.names)))
    decoded = _labelled(source, config, array, decode_into(array, source, plan))
    array.flush()
    if decoded.skipped:
        mapped.shorten(folder / cache.IMAGES, len(decoded.images))
    if decoded.labels is not None:
        np.save(folder / cache.LABELS, decoded.labels)
    about = {
        "data": config.data,
        "class_names": decoded.class_names,
        "fingerprint": decoded.fingerprint,
        "skipped": decoded.skipped,
        "names": decoded.names,
    }
    (folder / cache.ABOUT).write_text(json.dumps(about))
