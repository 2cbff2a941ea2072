"""Images that a command is given, made as stage 1 of a run takes them."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.config.data import DataConfig
from pipeline.config.options import build
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_images
from pipeline.data.pixels import Colour
from pipeline.data.sources.base import SUFFIXES
from pipeline.errors import UsageError
from pipeline.runs.layout import RunFolder
from pipeline.runs.saved import VQVAERun


def images_like(config: VQVAERun, data: str, colour: Colour | None = None) -> ImageSet:
    """The images of a folder, a .zip, a file or a data set, in the run's colour or another one. Raises DataError, and
    UsageError for a run folder."""
    if RunFolder(Path(data)).contains_run():
        raise UsageError(f"{data} is a run folder, not images: name it with --run {data}, and images by themselves")
    size = f"{config.model.height}x{config.model.width}"
    options = {
        "data": data,
        "image_size": size,
        "colour": colour or ("grey" if config.model.channels == 1 else "colour"),
        "crop": config.data.crop,
        "draft": config.data.draft,
        "max_pixels": config.data.max_pixels,
    }
    return load_images(*build(options, DataConfig))


def images_of_paths(config: VQVAERun, paths: Sequence[Path]) -> tuple[list[UInt8[np.ndarray, "_ c h w"]], list[str]]:
    """The images of several paths, an array for each, and what to call each image: a file by its path, others by name
    or number."""
    sets = [images_like(config, str(path)) for path in paths]
    names = []
    for path, image_set in zip(paths, sets, strict=True):
        if path.suffix.lower() in SUFFIXES:
            names.append(str(path))
        else:
            names += [f"{path}/{name}" for name in image_set.names or map(str, range(len(image_set.images)))]
    return [image_set.images for image_set in sets], names


def in_batches(parts: Sequence[UInt8[np.ndarray, "_ c h w"]], size: int) -> Iterator[UInt8[np.ndarray, "m c h w"]]:
    """The images of several arrays one after another, so many at a time."""
    images = chain.from_iterable(parts)
    while batch := list(islice(images, size)):
        yield np.stack(batch)


def single_image(path: Path, images: ImageSet) -> UInt8[np.ndarray, "c h w"]:
    """The image of a path. Raises UsageError when there are several."""
    if len(images.images) != 1:
        raise UsageError(f"{path} holds {len(images.images):,} images; name one of them")
    return images.images[0]
