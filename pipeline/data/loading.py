"""Every way images come in: by name, or from files, decoded into memory or into a file of the cache."""

import contextlib
import hashlib
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8

from pipeline import resources
from pipeline.config.data import EMBEDDED, NAMED, DataConfig
from pipeline.data import pixels
from pipeline.data.datasets import EMBEDDED_NAMES, embedded_digits, torchvision_dataset
from pipeline.data.decoding import Plan, decode_into, plan_for
from pipeline.data.image_set import Decoded, ImageSet, assembled, from_array, images_at_a_time, in_words
from pipeline.data.kept import cache, mapped, stored
from pipeline.data.pixels import channels
from pipeline.data.sources.base import UNREADABLE, Source
from pipeline.data.sources.label_file import read_label_file
from pipeline.data.sources.labelling import BY_FOLDER, NO_CLASSES, Classes, own_classes
from pipeline.data.sources.opening import open_source
from pipeline.errors import DataError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.storage import atomic_folder

_LISTED = 10  # bad files named in an error
_CPU = torch.device("cpu")


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
    return load_images(replace(alike, data=config.test_data, label_file=None), reporter=reporter)


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


def _from_files(source: Source, config: DataConfig, reporter: Reporter, *, shared: bool) -> ImageSet:
    classes = _classes(source, config)
    with pixels.decoders(config.max_pixels):
        plan = plan_for(source, config)
        shape = _shape(source, config, plan)
        if not shared and math.prod(shape) <= config.memory_gib * 2**30:
            remedy = "choose a smaller --image-size, or a smaller --memory-gib: then they lie in a file of the cache"
            resources.check_memory(_CPU, math.prod(shape), in_words(shape), remedy)
            array = np.empty(shape, np.uint8)
            found = assembled(_decoded(source, config, plan, array), plan.window, classes)
        else:
            found = _from_cache(source, config, plan, classes, reporter)
    others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.passed_over)
    return replace(found, passed_over=others)


def _classes(source: Source, config: DataConfig) -> Classes:
    """The classes wanted: from a file, from beside the images, by their folders, or none."""
    if not config.labels:
        return NO_CLASSES
    if config.label_file is not None:
        own = read_label_file(Path(config.label_file).expanduser(), source.names, config.data)
        return own_classes(source.names, own)
    own_of_source = source.labelling()
    return BY_FOLDER if own_of_source is None else own_classes(source.names, own_of_source)


def _shape(source: Source, config: DataConfig, plan: Plan) -> tuple[int, int, int, int]:
    return len(source.names), channels(plan.colour), *config.with_margin(plan.window)


def _decoded(source: Source, config: DataConfig, plan: Plan, array: np.ndarray) -> Decoded:
    bad = decode_into(array, source, plan, config.draft_side)
    skipped = tuple(f"{source.names[index]}: {reason}" for index, reason in bad.items())
    if bad and (config.on_bad_image == "error" or len(bad) == len(source.names)):
        listed = "\n".join(f"  {line}" for line in skipped[:_LISTED])
        raise DataError(
            f"{len(bad)} of {len(source.names)} images in {config.data} cannot be read. Repair or delete "
            f"them; a training skips unreadable images with --on-bad-image skip:\n{listed}"
        )
    good = np.delete(np.arange(len(source.names)), list(bad))
    kept = _moved_up(array, good) if bad else array
    names = tuple(source.names[index] for index in good) if bad else source.names
    return Decoded(kept, names, skipped)


def _moved_up(array: UInt8[np.ndarray, "n c h w"], rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m c h w"]:
    """These rows, in rising order, moved to the beginning: the array may be larger than memory."""
    for start in range(0, len(rows), size := images_at_a_time(array)):
        part = rows[start : start + size]
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


def _from_cache(source: Source, config: DataConfig, plan: Plan, classes: Classes, reporter: Reporter) -> ImageSet:
    """Open the memory-mapped pixels of these files, decoding them first if nobody has."""
    key = _key(source, config, plan, by_folder=classes is BY_FOLDER)
    folder = cache.decoded_folder() / key
    found = stored.opened(folder, plan.window, classes)
    if found is not None:
        return found
    with cache.alone_with(key, reporter):
        # Perhaps the command that was waited for has decoded them; or a part of what is noted is all that lacks.
        found = stored.opened(folder, plan.window, classes) or stored.completed(folder, plan.window, classes)
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)  # what does not open whole
            shape = _shape(source, config, plan)
            cache.remove_orphans(key)
            cache.make_room(math.prod(shape), in_words(shape))
            # Another machine with the same home may decode the same files: whoever is first is right.
            with contextlib.suppress(FileExistsError), atomic_folder(folder) as unfinished:
                _decode_to_folder(unfinished, source, config, plan, classes)
            found = stored.opened(folder, plan.window, classes)
    if found is None:
        raise DataError(f"{folder} was removed or damaged meanwhile; try again, or `gen cache --clear` first")
    return found


def _key(source: Source, config: DataConfig, plan: Plan, *, by_folder: bool) -> str:
    """The name of a set in the cache: a hash of all that its pixels depend on.

    Classes by folders are a part of it, as they always were; others are noted beside the pixels of no classes.
    """
    decides = f"{source.stamp}\n{plan}\n{by_folder} {config.on_bad_image} {config.max_pixels}"
    if config.crop == "random":
        decides += "\nwith a margin"
    if config.draft_side is not None:
        decides += f"\nJPEG from {config.draft_side} pixels a side"
    return hashlib.sha256(decides.encode()).hexdigest()[:32]


def _decode_to_folder(folder: Path, source: Source, config: DataConfig, plan: Plan, classes: Classes) -> None:
    array = mapped.lay_out(folder / cache.IMAGES, _shape(source, config, plan))
    decoded = _decoded(source, config, plan, array)
    array.flush()
    if decoded.skipped:
        mapped.shorten(folder / cache.IMAGES, len(decoded.array))
    stored.note(folder, assembled(decoded, plan.window, classes), classes)
    (folder / cache.ABOUT).write_text(json.dumps({"data": config.data, "skipped": decoded.skipped}))
