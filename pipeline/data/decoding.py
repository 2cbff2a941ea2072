"""Image files to pixels: what all are decoded to, and how; whatever cannot be is named."""

import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.data import pixels
from pipeline.data.pixels import BadImageError, Colour, channels
from pipeline.data.sources import Source
from pipeline.errors import DataError

PROBED = 64  # files looked at to choose size and colour


class Plan(NamedTuple):
    """What every image of a source is decoded to."""

    colour: Colour
    height: int
    width: int
    size_asked: bool  # else it is the images' own, and all have it
    colour_asked: bool

    def shape(self, n: int) -> tuple[int, int, int, int]:
        return n, channels(self.colour), self.height, self.width

    def check(self, image: Image.Image) -> None:
        """Raise BadImageError for an image unlike those that the plan was made by."""
        if not self.size_asked and image.size != (self.width, self.height):
            own, usual = f"{image.height}x{image.width}", f"{self.height}x{self.width}"
            raise BadImageError(f"has {own} pixels where others have {usual}; choose a size with --image-size")
        if not self.colour_asked and self.colour == "grey" and not pixels.is_grey(image):
            raise BadImageError("is in colour where others are grey; choose with --colour")


class _Probe(NamedTuple):
    """What a plan asks of a decoded image."""

    size: tuple[int, int]
    grey: bool


def plan_for(source: Source, size: tuple[int, int] | None, colour: Colour | None) -> Plan:
    """Size and colour as asked for, or those of a few images spread over the source.

    Raises DataError when these differ in size.
    """
    if size and colour:
        return Plan(colour, *size, size_asked=True, colour_asked=True)
    step = -(-len(source.names) // PROBED)
    probes = list(_probe(source, source.names[::step])) or list(islice(_probe(source, source.names), 1))
    chosen = colour or ("grey" if all(probe.grey for probe in probes) else "colour")
    if size:
        return Plan(chosen, *size, size_asked=True, colour_asked=colour is not None)
    sizes = Counter(probe.size for probe in probes)
    if len(sizes) > 1:
        common = ", ".join(f"{height}x{width}" for (height, width), _ in sizes.most_common(3))
        raise DataError(f"the images differ in size ({common}, ...); choose one with --image-size")
    own = next(iter(sizes), (1, 1))  # without any, decoding will name all files as bad
    return Plan(chosen, *own, size_asked=False, colour_asked=colour is not None)


def _probe(source: Source, names: tuple[str, ...]) -> Iterator[_Probe]:
    for name in names:
        try:
            image = _open(source, name)
        except BadImageError:
            continue  # decoding all of them will report it
        yield _Probe((image.height, image.width), pixels.is_grey(image))


def _open(source: Source, name: str) -> Image.Image:
    try:
        data = source.read(name)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        # RuntimeError: an encrypted member
        raise BadImageError(str(error)) from error
    return pixels.open_image(data)


def decode_into(array: UInt8[np.ndarray, "n c h w"], source: Source, plan: Plan) -> dict[int, str]:
    """Decode every file into its row; returns why some could not be."""

    def decode(index: int) -> str | None:
        try:
            image = _open(source, source.names[index])
            plan.check(image)
        except BadImageError as error:
            return str(error)
        array[index] = pixels.fit(image, plan.height, plan.width, plan.colour)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(decode, range(len(source.names)), chunksize=64)
        return {index: reason for index, reason in enumerate(reasons) if reason}
