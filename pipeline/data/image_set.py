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
from pipeline.data.sources.base import UNREADABLE, Source
from pipeline.data.sources.labelling import label_by_folder
from pipeline.data.sources.opening import open_source
from pipeline.errors import DataError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.storage import atomic_folder

MOST_CLASSES = 2**20
_LISTED = 10  # bad files named in an error
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ImageSet:
    """Decoded images, in memory or memory-mapped, with what is known of them.

    They may have a margin around their centre `window`, height and width of which are those of `images`: a training
    with --crop random moves the window in it, and everything else sees `images` alone.
    """

    decoded: UInt8[np.ndarray, "n c h2 w2"]
    window: tuple[int, int]
    labels: Int[np.ndarray, "n"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the files, where there are any
    passed_over: str = ""  # files that are no images, by their suffixes

    @property
    def images(self) -> UInt8[np.ndarray, "n c h w"]:
        """The centre windows: a view, no copy."""
        top, left = (side // 2 for side in self._margins)
        height, width = self.window
        return self.decoded[:, :, top : top + height, left : left + width]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.decoded.shape[1], *self.window

    @property
    def positions(self) -> int:
        """How many positions a window may have in an image: one without a margin."""
        rows, columns = self._margins
        return (rows + 1) * (columns + 1)

    @property
    def _margins(self) -> tuple[int, int]:
        """Rows and columns that an image has more than a window."""
        return self.decoded.shape[2] - self.window[0], self.decoded.shape[3] - self.window[1]

    def windows(self, indices: Int[np.ndarray, "m"], positions: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
        """A copy of these images, each cut out at its position, counted from 0 row by row."""
        if self.positions == 1:
            return self.decoded[indices]
        height, width = self.window
        tops, lefts = np.divmod(positions, self._margins[1] + 1)
        cut = (
            self.decoded[index, :, top : top + height, left : left + width]
            for index, top, left in zip(indices, tops, lefts, strict=True)
        )
        return np.stack(list(cut))


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
    window = config.size() if config.image_size else (array.shape[2], array.shape[3])
    colour = config.colour if config.colour != "auto" else ("grey" if array.shape[1] == 1 else "colour")
    shape = (len(array), channels(colour), *config.with_margin(window))
    if array.shape != shape:
        array = _fitted(array, window, shape)
    kept = labels.astype(np.int64) if labels is not None and config.labels else None
    names = class_names or tuple(str(i) for i in range(0 if kept is None else int(kept.max()) + 1))
    return ImageSet(array, window, kept, names if kept is not None else (), fingerprint(array, window, kept))


def _as_array(given: np.ndarray | Tensor) -> np.ndarray:
    try:
        return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"images and targets must be arrays or tensors of whole numbers ({reason})") from error


def _fitted(
    images: UInt8[np.ndarray, "n c h w"], window: tuple[int, int], shape: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "n c2 h2 w2"]:
    resources.check_memory(_CPU, math.prod(shape), _in_words(shape), "choose a smaller --image-size")
    fitted, (_, depth, height, width) = np.empty(shape, np.uint8), shape
    for row, image in zip(fitted, images, strict=True):
        colour: pixels.Colour = "grey" if depth == 1 else "colour"
        row[:] = pixels.fit_with_margin(pixels.to_pil(image), window, (height, width), colour)
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


def fingerprint(
    images: UInt8[np.ndarray, "n c h w"], window: tuple[int, int], labels: Int[np.ndarray, "n"] | None
) -> str:
    """sha256 of the pixels, margins included, their shape, that of smaller windows, and the labels: what a run was
    trained on, whatever the files are called."""
    digest = hashlib.sha256(str(images.shape).encode())
    if window != images.shape[2:]:
        digest.update(str(window).encode())
    for start in range(0, len(images), size := images_at_a_time(images)):
        digest.update(images[start : start + size].tobytes())
    if labels is not None:
        digest.update(labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def images_at_a_time(images: UInt8[np.ndarray, "n c h w"]) -> int:
    """Images whose pixels are looked at together: 16 MiB of them, which counting turns into eight times as much."""
    return max(1, 2**24 // images[0].size)


def _from_files(source: Source, config: DataConfig, reporter: Reporter, *, shared: bool) -> ImageSet:
    with pixels.decoders(config.max_pixels):
        plan = plan_for(source, config)
        shape = _shape(source, config, plan)
        if not shared and math.prod(shape) <= config.memory_gib * 2**30:
            remedy = "choose a smaller --image-size, or a smaller --memory-gib: then they lie in a file of the cache"
            resources.check_memory(_CPU, math.prod(shape), _in_words(shape), remedy)
            array = np.empty(shape, np.uint8)
            decoded = _decoded(source, config, plan, array)
        else:
            decoded = _from_cache(source, config, plan, reporter)
    others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.passed_over)
    return replace(decoded, passed_over=others)


def _shape(source: Source, config: DataConfig, plan: Plan) -> tuple[int, int, int, int]:
    return len(source.names), channels(plan.colour), *config.with_margin((plan.height, plan.width))


def _decoded(source: Source, config: DataConfig, plan: Plan, array: np.ndarray) -> ImageSet:
    bad = decode_into(array, source, plan, config.draft_side)
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
    window = (plan.height, plan.width)
    return ImageSet(kept, window, labels, names, fingerprint(kept, window, labels), skipped, files)


def _moved_up(array: UInt8[np.ndarray, "n c h w"], rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
    """These rows, in rising order, moved to the beginning: the array may be larger than memory."""
    for start in range(0, len(rows), size := images_at_a_time(array)):
        part = rows[start : start + size]
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


def _from_cache(source: Source, config: DataConfig, plan: Plan, reporter: Reporter) -> ImageSet:
    """Open the memory-mapped pixels of these files, decoding them first if nobody has."""
    decides = f"{source.stamp}\n{plan}\n{config.labels} {config.on_bad_image} {config.max_pixels}"
    if config.crop == "random":
        decides += "\nwith a margin"
    if config.draft_side is not None:
        decides += f"\nJPEG from {config.draft_side} pixels a side"
    key = hashlib.sha256(decides.encode()).hexdigest()[:32]
    folder = cache.decoded_folder() / key
    window = (plan.height, plan.width)
    there = _opened(folder, window)
    if there is not None:
        return there
    with cache.alone_with(key, reporter):
        decoded = _opened(folder, window)  # perhaps the command that was waited for has decoded them
        if decoded is None:
            shutil.rmtree(folder, ignore_errors=True)  # what does not open whole
            shape = _shape(source, config, plan)
            cache.remove_orphans(key)
            cache.make_room(math.prod(shape), _in_words(shape))
            # Another machine with the same home may decode the same files: whoever is first is right.
            with contextlib.suppress(FileExistsError), atomic_folder(folder) as unfinished:
                _decode_to_folder(unfinished, source, config, plan)
            decoded = _opened(folder, window)
    if decoded is None:
        raise DataError(f"{folder} was removed or damaged meanwhile; try again, or `gen cache --clear` first")
    return decoded


def _opened(folder: Path, window: tuple[int, int]) -> ImageSet | None:
    """The decoded set in a folder of the cache; None where there is none, it is being removed, or it is damaged."""
    try:
        about = json.loads((folder / cache.ABOUT).read_text())
        labels = np.load(folder / cache.LABELS) if about["class_names"] else None
        array = mapped.open_held(folder / cache.IMAGES)
        class_names, skipped, names = (tuple(about[name]) for name in ("class_names", "skipped", "names"))
        found = ImageSet(array, window, labels, class_names, about["fingerprint"], skipped, names)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    with contextlib.suppress(PermissionError):  # of a cache that others fill
        os.utime(folder)  # it was used now
    return found


def _decode_to_folder(folder: Path, source: Source, config: DataConfig, plan: Plan) -> None:
    array = mapped.lay_out(folder / cache.IMAGES, _shape(source, config, plan))
    decoded = _decoded(source, config, plan, array)
    array.flush()
    if decoded.skipped:
        mapped.shorten(folder / cache.IMAGES, len(decoded.decoded))
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
