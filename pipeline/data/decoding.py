"""Image files to pixels: what all are decoded to, and how; whatever cannot be is named."""

import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from pipeline.config.data import DataConfig
from pipeline.data import pixels
from pipeline.data.pixels import BadImageError, Colour
from pipeline.data.sources.base import UNREADABLE, Source
from pipeline.errors import DataError
from pipeline.resources import free_memory

PROBED = 64  # files looked at to choose size and colour
_BYTES_A_PIXEL = 24  # of an image while it is decoded and resized, at most, about
CHUNK = 16  # images that a thread decodes before it takes others


class Plan(NamedTuple):
    """What is seen of every image of a source: its colour, and the size of a window."""

    colour: Colour
    height: int
    width: int
    size_asked: bool  # else it is the images' own, and all have it
    colour_asked: bool

    @property
    def window(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

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


def plan_for(source: Source, config: DataConfig) -> Plan:
    """Size and colour as asked for, or those of a few images spread over the source.

    Raises DataError when these differ in size.
    """
    size = config.size() if config.image_size else None
    colour: Colour | None = None if config.colour == "auto" else config.colour
    if size and colour:
        return Plan(colour, *size, size_asked=True, colour_asked=True)
    step = -(-len(source.names) // PROBED)
    side = config.draft_side
    probes = list(_probe(source, source.names[::step], side)) or list(islice(_probe(source, source.names, side), 1))
    chosen = colour or ("grey" if all(probe.grey for probe in probes) else "colour")
    if size:
        return Plan(chosen, *size, size_asked=True, colour_asked=colour is not None)
    sizes = Counter(probe.size for probe in probes)
    if len(sizes) > 1:
        common = ", ".join(f"{height}x{width}" for (height, width), _ in sizes.most_common(3))
        raise DataError(f"the images differ in size ({common}, ...); choose one with --image-size")
    own = next(iter(sizes), (1, 1))  # without any, decoding will name all files as bad
    return Plan(chosen, *own, size_asked=False, colour_asked=colour is not None)


def _probe(source: Source, names: tuple[str, ...], draft_side: int | None) -> Iterator[_Probe]:
    for name in names:
        try:
            image = _open(source, name, draft_side)
        except BadImageError:
            continue  # decoding all of them will report it
        yield _Probe((image.height, image.width), pixels.is_grey(image))


def _open(source: Source, name: str, draft_side: int | None) -> Image.Image:
    try:
        data = source.read(name)
    except UNREADABLE as error:
        raise BadImageError(str(error)) from error
    return pixels.open_image(data, draft_side)


def decode_into(
    array: UInt8[np.ndarray, "n c h w"], source: Source, plan: Plan, draft_side: int | None
) -> dict[int, str]:
    """Decode every file into its row, with the margin that a row has around a window; returns why some could not be."""
    _, _, *size = array.shape
    alone = threading.Lock()

    def decode(index: int) -> str | None:
        try:
            image = _open(source, source.names[index], draft_side)
            plan.check(image)
            array[index] = pixels.fit_with_margin(image, plan.window, (size[0], size[1]), plan.colour)
        except BadImageError as error:
            return str(error)
        return None

    def decode_in_memory(index: int) -> str | None:
        """Where the memory is full, it is no fault of the image: it is tried again while no other one is."""
        try:
            return decode(index)
        except MemoryError:
            with alone:
                try:
                    return decode(index)
                except MemoryError:
                    return "takes more memory than is free"

    def decode_chunk(indices: range) -> dict[int, str]:
        return {index: reason for index in indices if (reason := decode_in_memory(index))}

    bad: dict[int, str] = {}
    # A decoded image is held several times over: as it is in the file, converted, and while it is resized.
    at_once = free_memory(torch.device("cpu")) // ((Image.MAX_IMAGE_PIXELS or 2**27) * _BYTES_A_PIXEL)
    workers = max(1, min(os.cpu_count() or 1, at_once))
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[dict[int, str]]] = deque()
        for start in range(0, len(source.names), CHUNK):
            if len(waiting) == 4 * workers:  # of a million images only these few are in the pool's queue
                bad |= waiting.popleft().result()
            waiting.append(pool.submit(decode_chunk, range(start, min(start + CHUNK, len(source.names)))))
        for chunk in waiting:
            bad |= chunk.result()
    return bad
