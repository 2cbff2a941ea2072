"""The images of a run: read once on each machine, and compared with those that it was trained on."""

from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline import processes
from pipeline.config.data import ARRAY, EMBEDDED, NAMED, DataConfig
from pipeline.data.image_set import ImageSet, from_array
from pipeline.data.loading import load_images
from pipeline.data.record import load_hashes, what_changed
from pipeline.data.splits import load_split
from pipeline.errors import DataError
from pipeline.runs.layout import BAD_IMAGES, IMAGE_HASHES, SPLIT, RunFolder
from pipeline.runs.saved import VQVAERun, images_in_words
from pipeline.training.launch import Launch


def load_image_set(
    config: DataConfig,
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
    launch: Launch,
) -> ImageSet:
    """The images of a configuration, or those given as an array; one process of a machine decodes for all."""
    if config.data == ARRAY:
        if images is None:
            raise DataError("this run was trained on an array: pass it again, as images=... and targets=...")
        given_images = images
        return processes.alike(
            launch.accelerator,
            lambda: from_array(given_images, targets, (), config),
            lambda read: read.fingerprint,
            "the images given",
        )
    say = launch.reporter.say
    say(f"reading {config.data}")
    if config.data in (EMBEDDED, *NAMED) and Path(config.data).is_dir():
        say(f"that is the data set of this name, not the folder here, which is ./{config.data}")
    accelerator, shared = launch.accelerator, launch.accelerator.num_processes > 1

    def read() -> ImageSet:
        return load_images(config, shared=shared, reporter=launch.reporter)

    # The first process of each machine decodes for its others.
    decoded = processes.alike(
        accelerator, lambda: read() if accelerator.is_local_main_process else None, lambda _: "", config.data
    )
    image_set = processes.alike(accelerator, lambda: decoded or read(), lambda found: found.fingerprint, config.data)
    if image_set.skipped:
        say(f"skipped {len(image_set.skipped):,} images, such as {image_set.skipped[0]} (all: {BAD_IMAGES} in the run)")
    if image_set.passed_over:
        say(f"passed over, as no images that are read: {image_set.passed_over}")
    if config.labels and image_set.names and not image_set.class_names:
        folders = len({name.rpartition("/")[0] for name in image_set.names})
        if folders > 1:
            say(f"no classes: images lie in {folders} folders, some of them beside folders of others")
    return image_set


def check_unchanged(run: RunFolder, saved: VQVAERun, image_set: ImageSet) -> None:
    """Raise DataError unless the images are those that a run was trained on."""
    if saved.fingerprint == image_set.fingerprint:
        if saved.class_names != image_set.class_names:
            then, now = (", ".join(names) for names in (saved.class_names, image_set.class_names))
            raise DataError(
                f"the classes of {run.path} had other names when it was trained: {then:.200} and not {now:.200}; bring "
                "the old names back, or start a new run with --out"
            )
        return
    then, now = images_in_words(saved.model), " x ".join(map(str, image_set.shape))
    n = sum(map(len, load_split(run.vqvae / SPLIT)))
    hashes = load_hashes(run.vqvae / IMAGE_HASHES)
    details = f"there are {len(image_set.images):,} of {now}, and were {n:,} of {then}"
    if hashes is not None and then == now:
        changed = what_changed(hashes, image_set)
        same = "" if n != len(image_set.images) else "the pixels are the same, their order or their classes are not"
        details += f"; {changed or same}".rstrip("; ")
    raise DataError(
        f"the images are not those that {run.path} was trained on: {details}. Bring the old images back, or start a "
        "new run with --out"
    )
