"""Every way images come in; what goes on is one uint8 array (n, channels, height, width) with labels."""

import contextlib
import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline.config.data import EMBEDDED, NAMED, DataConfig
from pipeline.data import pixels
from pipeline.data.datasets import EMBEDDED_NAMES, cache_folder, embedded_digits, torchvision_dataset
from pipeline.data.decoding import Plan, decode_into, plan_for
from pipeline.data.pixels import channels
from pipeline.data.sources import Source, label_by_folder, open_source
from pipeline.errors import DataError
from pipeline.storage import atomic_folder

_LISTED = 10  # bad files named in an error


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


def load_images(config: DataConfig, *, shared: bool = False) -> ImageSet:
    """Decode what `config.data` names.

    `shared`: put the pixels into a memory-mapped file even if they are few, so that the processes of a machine
    hold them once; the caller lets one process go first. Raises DataError.
    """
    if config.data == EMBEDDED:
        return from_array(*embedded_digits(), EMBEDDED_NAMES, config)
    if config.data in NAMED:
        return from_array(*torchvision_dataset(config.data, train=True), config)
    return _from_files(open_source(Path(config.data).expanduser()), config, shared=shared)


def load_test_images(config: DataConfig, shape: tuple[int, int, int]) -> ImageSet:
    """Decode the official test part that `config.test_data` names, in the shape (channels, height, width) of the images
    trained on. Raises DataError."""
    assert config.test_data is not None
    channels, height, width = shape
    alike = replace(config, image_size=f"{height}x{width}", colour="grey" if channels == 1 else "colour")
    if config.test_data in NAMED:
        return from_array(*torchvision_dataset(config.test_data, train=False), alike)
    return _from_files(open_source(Path(config.test_data)), replace(alike, data=config.test_data), shared=False)


def test_files_fingerprint(test_data: str) -> str:
    """The hash of what `test_data` names, which is not decoded: the name, or the names and bytes of its files.

    Raises DataError where there are none.
    """
    if test_data in NAMED:
        return hashlib.sha256(test_data.encode()).hexdigest()
    source, digest = open_source(Path(test_data)), hashlib.sha256()
    for name in source.names:
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(source.read(name)).digest())
    return digest.hexdigest()


def from_array(
    images: UInt8[np.ndarray, "n c h w"] | Tensor,
    labels: Int[np.ndarray, "n"] | Tensor | None,
    class_names: tuple[str, ...],
    config: DataConfig,
) -> ImageSet:
    """Images that are decoded already: cut to the configured size and colour. Raises DataError."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not len(array):
        raise DataError(f"images must be uint8 (n, 1 or 3, height, width); got {array.dtype} {array.shape}")
    if labels is not None:
        _check_labels(np.asarray(labels), len(array))
    height, width = config.size() if config.image_size else array.shape[2:]
    colour = config.colour if config.colour != "auto" else ("grey" if array.shape[1] == 1 else "colour")
    if array.shape[1:] != (channels(colour), height, width):
        array = np.stack([pixels.fit(pixels.to_pil(image), height, width, colour) for image in array])
    kept = np.asarray(labels).astype(np.int64) if labels is not None and config.labels else None
    names = class_names or tuple(str(i) for i in range(0 if kept is None else int(kept.max()) + 1))
    return ImageSet(array, kept, names if kept is not None else (), fingerprint(array, kept))


def _check_labels(labels: np.ndarray, n: int) -> None:
    if labels.shape != (n,):
        raise DataError(f"{n} images but labels of shape {labels.shape}; give one number per image")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels must be whole numbers from 0 on; got {labels.dtype}, such as {labels[0]!r}")
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


def _from_files(source: Source, config: DataConfig, *, shared: bool) -> ImageSet:
    with warnings.catch_warnings():
        # Pillow merely warns of images that are absurdly large; a person is told which file it is.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings(
            "ignore", "(Possibly )?[Cc]orrupt EXIF", UserWarning
        )  # such pictures are shown as they lie
        size = config.size() if config.image_size else None
        plan = plan_for(source, size, None if config.colour == "auto" else config.colour)
        others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.passed_over)
        shape = plan.shape(len(source.names))
        if not shared and np.prod(shape) <= config.memory_gib * 2**30:
            array = np.empty(shape, np.uint8)
            decoded = _labelled(source, config, array, decode_into(array, source, plan))
        else:
            decoded = _from_cache(source, config, plan)
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


def _from_cache(source: Source, config: DataConfig, plan: Plan) -> ImageSet:
    """Open the memory-mapped pixels of these files, decoding them first if nobody has."""
    key = hashlib.sha256(f"{source.stamp}\n{plan}\n{config.labels} {config.on_bad_image}".encode()).hexdigest()[:32]
    folder = cache_folder() / "decoded" / key
    if not folder.exists():
        # Another machine with the same home may decode the same files: whoever is first is right.
        with contextlib.suppress(FileExistsError), atomic_folder(folder) as unfinished:
            _decode_to_folder(unfinished, source, config, plan)
    meta = json.loads((folder / "images.json").read_text())
    labels = np.load(folder / "labels.npy") if meta["class_names"] else None
    array = np.load(folder / "images.npy", mmap_mode="r")
    class_names, skipped, names = (tuple(meta.get(name, ())) for name in ("class_names", "skipped", "names"))
    return ImageSet(array, labels, class_names, meta["fingerprint"], skipped, names)


def _decode_to_folder(folder: Path, source: Source, config: DataConfig, plan: Plan) -> None:
    path = folder / "images.npy"
    array = np.lib.format.open_memmap(path, "w+", np.uint8, plan.shape(len(source.names)))
    decoded = _labelled(source, config, array, decode_into(array, source, plan))
    array.flush()
    if decoded.skipped:  # written beside, as it is read from there
        np.save(folder / "kept.npy", decoded.images)
        (folder / "kept.npy").replace(path)
    if decoded.labels is not None:
        np.save(folder / "labels.npy", decoded.labels)
    meta = {
        "class_names": decoded.class_names,
        "fingerprint": decoded.fingerprint,
        "skipped": decoded.skipped,
        "names": decoded.names,
    }
    (folder / "images.json").write_text(json.dumps(meta))
