"""The three parts of a run's images, as evaluation needs them: here alone the test part is read."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.config.data import ARRAY, DataConfig
from pipeline.config.options import build, flatten, given
from pipeline.data.image_set import ImageSet, load_test_images, test_files_fingerprint
from pipeline.data.splits import Split, load_split
from pipeline.errors import DataError
from pipeline.runs.layout import SPLIT
from pipeline.runs.opening import Run
from pipeline.training.launch import Launch
from pipeline.training.stage1 import check_unchanged, load_image_set


class Source(NamedTuple):
    """Where the images of a run are now, if not where they were: a folder, or arrays; and other images to test on."""

    data: str | None = None
    test_data: str | None = None
    images: np.ndarray | Tensor | None = None
    targets: np.ndarray | Tensor | None = None


class Labelled(NamedTuple):
    """Images with the numbers of their classes, where they have any."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, "n"] | None

    def spread(self, most: int) -> "Labelled":
        """So many of them at most, evenly over all: sorted folders have their classes one after another."""
        if len(self.images) <= most:
            return self
        chosen = (np.arange(most) * len(self.images)) // most
        return Labelled(self.images[chosen], None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True)
class Parts:
    """The images of a run: all, how they were divided, and those that no training looked at."""

    image_set: ImageSet
    split: Split
    test: Labelled

    @property
    def train(self) -> Int[np.ndarray, "m"]:
        """Indices of the images trained on."""
        return self.split.train

    @property
    def validation(self) -> Labelled:
        """The images that chose the best weights."""
        return self.labelled(self.split.validation)

    def labelled(self, indices: Int[np.ndarray, "m"]) -> Labelled:
        """Some of the images, with their classes."""
        return _chosen(self.image_set, indices)


def _chosen(image_set: ImageSet, indices: Int[np.ndarray, "m"]) -> Labelled:
    return Labelled(image_set.images[indices], None if image_set.labels is None else image_set.labels[indices])


def read_parts(run: Run, source: Source, launch: Launch) -> Parts:
    """The images of a run, which must be those that it was trained on; and its test part, or `source.test_data`.

    Raises DataError where they have changed or gone, or where no image is left for testing.
    """
    config = run.vqvae
    now = given({"data": ARRAY if source.images is not None else source.data})
    image_set = load_image_set(*build(flatten(config.data) | now, DataConfig), source.images, source.targets, launch)
    check_unchanged(run.folder, config, image_set)
    split = load_split(run.folder.vqvae / SPLIT)
    with launch.accelerator.local_main_process_first():
        return Parts(image_set, split, _test_part(run, image_set, split, source.test_data))


def _test_part(run: Run, image_set: ImageSet, split: Split, test_data: str | None) -> Labelled:
    config = run.vqvae
    official = test_data or config.data.test_data
    if official is None:
        if not len(split.test):
            raise DataError(
                f"{run.folder.path} was trained with --test {config.data.test:g}, which leaves none of "
                f"{len(image_set.images):,} images for testing; name some that it was not trained on with --test-data"
            )
        return _chosen(image_set, split.test)
    if test_data is None and test_files_fingerprint(official) != config.test_fingerprint:
        raise DataError(f"the files of {official} are not those that {run.folder.path} was begun with")
    read = load_test_images(replace(config.data, test_data=official), image_set.shape)
    return Labelled(read.images, classes_as_in(read, config.class_names, official))


def classes_as_in(read: ImageSet, class_names: tuple[str, ...], data: str) -> Int[np.ndarray, "n"] | None:
    """Classes of other images as the run numbers them: a folder may hold some of them alone."""
    if read.labels is None or not class_names:
        return None
    unknown = sorted(set(read.class_names) - set(class_names))
    if unknown:
        raise DataError(
            f"{data} has classes that the run does not: {', '.join(unknown)[:200]} (it has "
            f"{', '.join(class_names)[:200]}); rename the folders, or move the images into one folder without classes"
        )
    numbers = np.array([class_names.index(name) for name in read.class_names])
    return numbers[read.labels]
