"""Images as one uint8 array (n, channels, height, width), with their classes and what one pass over them found."""

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline import resources
from pipeline.config.data import DataConfig
from pipeline.data import pixels
from pipeline.data.pixels import channels
from pipeline.data.sources.labelling import Classes
from pipeline.errors import DataError

MOST_CLASSES = 2**20
_CPU = torch.device("cpu")


class Facts(NamedTuple):
    """What is known of each image without reading it again: eight bytes of a hash of its pixels, margins included, and
    the sums of the pixels of its centre window, from 0 to 255, and of their squares."""

    hashes: Int[np.ndarray, "n"]
    sums: Int[np.ndarray, "n"]
    squares: Int[np.ndarray, "n"]


class Names(Sequence[str]):
    """Names of files as one text in UTF-8, of which `ends` says where each ends: of a million some 30 MB, which may be
    mapped into memory, where as many texts of their own take a hundred."""

    def __init__(self, text: UInt8[np.ndarray, "bytes"], ends: Int[np.ndarray, "n"]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """These names."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += name.encode()
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return Names.of(self[one] for one in range(*index.indices(len(self))))
        number = range(len(self))[index]
        return self.text[self.ends[number - 1] if number else 0 : self.ends[number]].tobytes().decode()


@dataclass(frozen=True)
class ImageSet:
    """Decoded images, in memory or memory-mapped, with what is known of them.

    They may have a margin around their centre `window`, height and width of which are those of `images`: a training
    with --crop random moves the window in it, and everything else sees `images` alone.
    """

    decoded: UInt8[np.ndarray, "n c h2 w2"]
    window: tuple[int, int]
    facts: Facts
    labels: Int[np.ndarray, "n"] | None
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    names: Sequence[str] = ()  # of the files, where there are any
    passed_over: str = ""  # files that are no images, by their suffixes

    @property
    def images(self) -> UInt8[np.ndarray, "n c h w"]:
        """The centre windows: a view, no copy."""
        return centre(self.decoded, self.window)

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
    facts, fingerprint = measured(array, window, kept)
    return ImageSet(array, window, facts, kept, names if kept is not None else (), fingerprint)


def _as_array(given: np.ndarray | Tensor) -> np.ndarray:
    try:
        return given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"images and targets must be arrays or tensors of whole numbers ({reason})") from error


def _fitted(
    images: UInt8[np.ndarray, "n c h w"], window: tuple[int, int], shape: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "n c2 h2 w2"]:
    resources.check_memory(_CPU, math.prod(shape), in_words(shape), "choose a smaller --image-size")
    fitted, (_, depth, height, width) = np.empty(shape, np.uint8), shape
    for row, image in zip(fitted, images, strict=True):
        colour: pixels.Colour = "grey" if depth == 1 else "colour"
        row[:] = pixels.fit_with_margin(pixels.to_pil(image), window, (height, width), colour)
    return fitted


def in_words(shape: tuple[int, int, int, int]) -> str:
    """What is to be held, as errors say it."""
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


def centre(images: UInt8[np.ndarray, "n c h2 w2"], window: tuple[int, int]) -> UInt8[np.ndarray, "n c h w"]:
    """The centre windows, of this height and width: a view, no copy."""
    top, left = ((side - own) // 2 for side, own in zip(images.shape[2:], window, strict=True))
    return images[:, :, top : top + window[0], left : left + window[1]]


class Decoded(NamedTuple):
    """Images that could be decoded, the names of their files, and of the others why they could not be."""

    array: UInt8[np.ndarray, "n c h2 w2"]
    names: Sequence[str]
    skipped: tuple[str, ...]


def assembled(decoded: Decoded, window: tuple[int, int], classes: Classes) -> ImageSet:
    """The set of these images: one pass over all pixels."""
    labelling = classes.of(decoded.names)
    labels = None if labelling is None else np.asarray(labelling.labels, dtype=np.int64)
    class_names = () if labelling is None else labelling.class_names
    facts, fingerprint = measured(decoded.array, window, labels)
    return ImageSet(decoded.array, window, facts, labels, class_names, fingerprint, decoded.skipped, decoded.names)


def measured(
    images: UInt8[np.ndarray, "n c h2 w2"], window: tuple[int, int], labels: Int[np.ndarray, "n"] | None
) -> tuple[Facts, str]:
    """What one pass over all images finds: facts of each, and the fingerprint of the whole.

    The fingerprint is the sha256 of the pixels, margins included, their shape, that of smaller windows, and the labels:
    what a run was trained on, whatever the files are called.
    """
    digest, facts = hashlib.sha256(str(images.shape).encode()), np.empty((3, len(images)), np.int64)
    if window != images.shape[2:]:
        digest.update(str(window).encode())
    for start in range(0, len(images), size := images_at_a_time(images)):
        part = images[start : start + size]
        digest.update(part.tobytes())
        facts[0, start : start + size] = hashed(image.tobytes() for image in part)
        facts[1:, start : start + size] = _sums(centre(part, window))
    if labels is not None:
        digest.update(labels.astype(np.int64).tobytes())
    return Facts(*facts), digest.hexdigest()


def _sums(images: UInt8[np.ndarray, "n c h w"]) -> Int[np.ndarray, "2 n"]:
    """Of each image the sum of its pixels, and of their squares."""
    own = images.reshape(len(images), -1).astype(np.uint16)
    return np.stack([own.sum(1, dtype=np.int64), (own * own).sum(1, dtype=np.int64)])  # 255 squared fits in 16 bits


def hashed(contents: Iterable[bytes]) -> Int[np.ndarray, "n"]:
    """Eight bytes of a hash of each."""
    return np.frombuffer(b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents), np.int64)


def images_at_a_time(images: UInt8[np.ndarray, "n c h w"]) -> int:
    """Images whose pixels are read together: 4 MiB of them, of which a few copies are made."""
    return max(1, 2**22 // images[0].size)
