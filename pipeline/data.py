"""Every way images come in; what goes on is one uint8 array (n, channels, height, width) with labels."""

import contextlib
import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pydantic
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from pipeline import images as pictures
from pipeline.decoding import Plan, decode_into, plan_for
from pipeline.errors import DataError
from pipeline.images import channels
from pipeline.randomness import Purpose, stream
from pipeline.sources import Labelling, Source, label_by_folder, open_source
from pipeline.storage import atomic_folder

EMBEDDED = "digits"
ARRAY = "array"  # what config.json says of images that came as an array
NAMED = ("mnist", "fashion-mnist", "cifar10")
LISTED = 10  # bad files named in an error
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DataConfig:
    """Which images, and how they are made alike."""

    data: str = Field(
        default=EMBEDDED,
        description=f"A folder of images, a .zip of one, or a name: {EMBEDDED} (embedded), {', '.join(NAMED)}.",
    )
    image_size: str | None = Field(
        default=None,
        description="Height and width, as 32 or 48x32; by default the images' own where they agree.",
    )
    colour: Literal["auto", "grey", "colour"] = Field(default="auto", description="Channels; auto looks at the images.")
    flip: bool = Field(default=False, description="Mirror images at random while training.")
    labels: bool = Field(default=True, description="Learn the folders' names as classes.")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="Fraction of the images kept for evaluation.")
    on_bad_image: Literal["error", "skip"] = Field(
        default="error", description="What to do with a file that cannot be read, or is unlike the others."
    )
    memory_gib: float = Field(
        default=2.0,
        ge=0,
        description="Decoded images above this size live in a memory-mapped file in the cache.",
    )

    @field_validator("data", "image_size", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | Path) else value

    @model_validator(mode="after")
    def _image_size_is_one(self) -> Self:
        if self.image_size is not None and (not _SIZE.fullmatch(self.image_size) or 0 in self.size()):
            raise ValueError(f"--image-size takes a number of pixels or HEIGHTxWIDTH; got {self.image_size!r}")
        return self

    def size(self) -> tuple[int, int]:
        """Height and width asked for. Call it only where `image_size` is given."""
        match = _SIZE.fullmatch(self.image_size or "")
        assert match
        return int(match[1]), int(match[2] or match[1])


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


class Split(NamedTuple):
    """Indices of the images that are trained on, and of those that are only evaluated on."""

    train: Int[np.ndarray, "train"]
    held_out: Int[np.ndarray, "held_out"]


def split(n: int, held_out: float, seed: int) -> Split:
    """Choose the held-out images at random, at least one. Raises DataError for fewer than two images."""
    if n < 2:
        raise DataError(f"training takes 2 images at least, one of them held out; got {n}")
    order = stream(seed, Purpose.SPLIT).permutation(n)
    cut = min(n - 1, max(1, round(n * held_out)))
    return Split(train=np.sort(order[cut:]), held_out=np.sort(order[:cut]))


def pixel_variance(images: UInt8[np.ndarray, "n c h w"], indices: Int[np.ndarray, "m"]) -> float:
    """The global variance of the pixels on [0, 1], from their histogram. Raises DataError when it is zero."""
    histogram = np.zeros(256, dtype=np.int64)
    for part in np.array_split(indices, -(-len(indices) // _at_a_time(images))):
        histogram += np.bincount(images[part].ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = np.average(levels, weights=histogram)
    variance = float(np.average((levels - mean) ** 2, weights=histogram))
    if variance == 0:
        raise DataError("all pixels of all training images are equal: there is nothing to learn")
    return variance


def load_images(config: DataConfig, *, shared: bool = False) -> ImageSet:
    """Decode what `config.data` names.

    `shared`: put the pixels into a memory-mapped file even if they are few, so that the processes of a machine
    hold them once; the caller lets one process go first. Raises DataError.
    """
    if config.data == EMBEDDED:
        return from_array(*_digits(), _digit_names(), config)
    if config.data in NAMED:
        return from_array(*_torchvision(config.data), config)
    return _from_files(open_source(Path(config.data).expanduser()), config, shared=shared)


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
        array = np.stack([pictures.fit(pictures.to_pil(image), height, width, colour) for image in array])
    kept = np.asarray(labels).astype(np.int64) if labels is not None and config.labels else None
    names = class_names or tuple(str(i) for i in range(0 if kept is None else int(kept.max()) + 1))
    return ImageSet(array, kept, names if kept is not None else (), fingerprint(array, kept))


def _check_labels(labels: np.ndarray, n: int) -> None:
    if labels.shape != (n,):
        raise DataError(f"{n} images but labels of shape {labels.shape}; give one number an image")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels must be whole numbers from 0 on; got {labels.dtype}, such as {labels[0]!r}")
    if labels.min() < 0:
        raise DataError(
            f"labels must be whole numbers from 0 on; got {labels.min()} (all images have a class, or none has)"
        )


def fingerprint(images: UInt8[np.ndarray, "n c h w"], labels: Int[np.ndarray, "n"] | None) -> str:
    """sha256 of the pixels, their shape and the labels: what a run was trained on, whatever the files are called."""
    digest = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), size := _at_a_time(images)):
        digest.update(images[start : start + size].tobytes())
    if labels is not None:
        digest.update(labels.astype(np.int64).tobytes())
    return digest.hexdigest()


def _at_a_time(images: UInt8[np.ndarray, "n c h w"]) -> int:
    """Images whose pixels are looked at together: 16 MiB of them, which counting turns into eight times as much."""
    return max(1, 2**24 // images[0].size)


def _digits() -> tuple[UInt8[np.ndarray, "n 1 32 32"], Int[np.ndarray, "n"]]:
    """scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8x8 with 17 greys, enlarged to 32x32."""
    from sklearn.datasets import load_digits  # a second to import; only this data needs it

    digits = load_digits()
    small = (digits.images * (255 / 16)).round().astype(np.uint8)
    return np.stack([pictures.fit(Image.fromarray(image), 32, 32, "grey") for image in small]), digits.target


def _digit_names() -> tuple[str, ...]:
    return ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _torchvision(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The training part of a torchvision dataset, downloaded into the cache on first use."""
    datasets = import_torchvision_datasets()
    maker = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        dataset = maker(cache_folder() / "torchvision", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be downloaded ({str(error).splitlines()[0]}); offline, pass --data a folder or a .zip"
        ) from error
    array = np.asarray(dataset.data)
    array = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array), np.asarray(dataset.targets), tuple(map(_plain, dataset.classes))


def _plain(name: str) -> str:
    """MNIST calls its classes `3 - three`."""
    return name.partition(" - ")[2] or name


def import_torchvision_datasets() -> Any:
    """torchvision.datasets. Raises DataError when torch and torchvision come from different builds."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise DataError(f"torchvision does not fit the installed torch ({error}); `gen doctor` says more") from error
    return datasets


def cache_folder() -> Path:
    """Where decoded and downloaded images are kept: $GEN_CACHE, or gen-images in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GEN_CACHE") or Path(home) / "gen-images")


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
            pixels = np.empty(shape, np.uint8)
            decoded = _labelled(source, config, pixels, decode_into(pixels, source, plan))
        else:
            decoded = _from_cache(source, config, plan)
        return replace(decoded, passed_over=others)


def _labelled(source: Source, config: DataConfig, pixels: np.ndarray, bad: dict[int, str]) -> ImageSet:
    skipped = tuple(f"{source.names[index]}: {reason}" for index, reason in bad.items())
    if bad and (config.on_bad_image == "error" or len(bad) == len(source.names)):
        listed = "\n".join(f"  {line}" for line in skipped[:LISTED])
        raise DataError(
            f"{len(bad)} of {len(source.names)} images in {config.data} cannot be read; mend them, or pass "
            f"--on-bad-image skip:\n{listed}"
        )
    good = np.delete(np.arange(len(source.names)), list(bad))
    labelling = label_by_folder(tuple(source.names[i] for i in good)) if config.labels else None
    names, labels = _numbered(labelling)
    kept = _moved_up(pixels, good) if bad else pixels
    files = tuple(source.names[index] for index in good)
    return ImageSet(kept, labels, names, fingerprint(kept, labels), skipped, files)


def _moved_up(pixels: UInt8[np.ndarray, "n c h w"], rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
    """These rows, in rising order, moved to the beginning: the array may be larger than memory."""
    for start in range(0, len(rows), size := _at_a_time(pixels)):
        part = rows[start : start + size]
        pixels[start : start + len(part)] = pixels[part]
    return pixels[: len(rows)]


def _numbered(labelling: Labelling | None) -> tuple[tuple[str, ...], Int[np.ndarray, "n"] | None]:
    if labelling is None:
        return (), None
    return labelling.class_names, np.asarray(labelling.labels, dtype=np.int64)


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
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    class_names, skipped, names = (tuple(meta.get(name, ())) for name in ("class_names", "skipped", "names"))
    return ImageSet(pixels, labels, class_names, meta["fingerprint"], skipped, names)


def _decode_to_folder(folder: Path, source: Source, config: DataConfig, plan: Plan) -> None:
    path = folder / "images.npy"
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, plan.shape(len(source.names)))
    decoded = _labelled(source, config, pixels, decode_into(pixels, source, plan))
    pixels.flush()
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


def class_weights(labels: Int[np.ndarray, "n"], num_classes: int) -> Float[np.ndarray, "classes"]:
    """The proportion of each class."""
    return np.bincount(labels, minlength=num_classes) / len(labels)
