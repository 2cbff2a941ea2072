"""The three parts of a run's images, as evaluation needs them: here alone the test part is read."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from pipeline.config.data import ARRAY, DataConfig
from pipeline.config.options import build, flatten, given
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_test_images, test_files_fingerprint
from pipeline.data.splits import Split, load_split
from pipeline.errors import DataError
from pipeline.randomness import Purpose, stream
from pipeline.runs.layout import SPLIT
from pipeline.runs.opening import Run
from pipeline.training.inputs.images import check_unchanged, load_image_set
from pipeline.training.launch import Launch


class Source(NamedTuple):
    """Where the images of a run are now, if not where they were: a folder, or arrays; and other images to test on."""

    data: str | None = None
    test_data: str | None = None
    images: np.ndarray | Tensor | None = None
    targets: np.ndarray | Tensor | None = None


def _at_random(population: int, most: int | None) -> Int[np.ndarray, "m"]:
    return stream(0, Purpose.SHOWN, population).permutation(population)[:most]


class Labelled(NamedTuple):
    """Images with the numbers of their classes, where they have any."""

    images: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, "n"] | None

    def drawn(self, most: int | None) -> "Labelled":
        """So many of them at most (or all), at random and in random order, the same each time: in a folder classes
        follow one another, or take turns."""
        chosen = _at_random(len(self.images), most)
        return Labelled(self.images[chosen], None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True)
class Parts:
    """The images of a run: all, how they were divided, and those that no training looked at."""

    image_set: ImageSet
    split: Split
    test: Labelled
    known: int = 0  # of the test images equal one that training has seen

    @property
    def train(self) -> Int[np.ndarray, "m"]:
        """Indices of the images trained on."""
        return self.split.train

    def validation(self, most: int) -> Labelled:
        """So many at most, at random, of the images that chose the best weights."""
        return self.labelled(self.split.validation[_at_random(len(self.split.validation), most)])

    def labelled(self, indices: Int[np.ndarray, "m"]) -> Labelled:
        """Some of the images, with their classes."""
        return _chosen(self.image_set, indices)


def _chosen(image_set: ImageSet, indices: Int[np.ndarray, "m"]) -> Labelled:
    return Labelled(image_set.images[indices], None if image_set.labels is None else image_set.labels[indices])


def read_parts(run: Run, source: Source, most: int | None, launch: Launch) -> Parts:
    """The images of a run, which must be those that it was trained on; and of its test part, or of `source.test_data`,
    so many at random, or all.

    Raises DataError where they have changed or gone, or where no image is left for testing.
    """
    image_set, split, wanted = _read(run, source, launch)
    with launch.accelerator.local_main_process_first():
        if source.test_data is None:
            _check_test_files(run)
        test = _test_part(run, image_set, split, wanted, most)
    return Parts(image_set, split, test, _known(image_set, np.union1d(split.train, split.validation), test, run))


def with_validation_as_test(run: Run, source: Source, most: int, launch: Launch) -> Parts:
    """The images of a run, and in place of its test part its validation images, so many at random: for a run that has
    no test part, to be shown and not measured. Raises DataError where they have changed or gone."""
    image_set, split, _ = _read(run, source, launch)
    return Parts(image_set, split, _chosen(image_set, split.validation[_at_random(len(split.validation), most)]))


def read_encoded(run: Run, source: Source, launch: Launch) -> tuple[ImageSet, Int[np.ndarray, "m"]]:
    """The images of a run, and the indices of those whose codes are known to it, in order: trained on or validated
    with. The test part is left alone. Raises DataError where they have changed or gone."""
    image_set, split, _ = _read(run, source, launch)
    return image_set, np.union1d(split.train, split.validation)


def _read(run: Run, source: Source, launch: Launch) -> tuple[ImageSet, Split, DataConfig]:
    """The images of a run, how they were divided, and where they are now."""
    now = given({"data": ARRAY if source.images is not None else source.data, "test_data": source.test_data})
    (wanted,) = build(flatten(run.vqvae.data) | now, DataConfig)
    image_set = load_image_set(wanted, source.images, source.targets, launch)
    check_unchanged(run.folder, run.vqvae, image_set)
    return image_set, load_split(run.folder.vqvae / SPLIT), wanted


def _known(image_set: ImageSet, indices: Int[np.ndarray, "m"], test: Labelled, run: Run) -> int:
    """How many test images equal one that training has seen. Raises DataError where most of them do."""
    wanted = {image.tobytes() for image in test.images}
    seen = {content for index in indices if (content := image_set.images[index].tobytes()) in wanted}
    known = sum(image.tobytes() in seen for image in test.images)
    if known > len(test.images) / 2:
        raise DataError(
            f"{known:,} of {len(test.images):,} test images are among those that {run.folder.path} was trained on, or "
            "chosen by; name others with --test-data"
        )
    return known


def _check_test_files(run: Run) -> None:
    """Raise DataError unless the run's own official test part is as it was, where there is one."""
    official = run.vqvae.data.test_data
    if official is not None and test_files_fingerprint(official) != run.vqvae.test_fingerprint:
        raise DataError(f"the files of {official} are not those that {run.folder.path} was begun with")


def _test_part(run: Run, image_set: ImageSet, split: Split, wanted: DataConfig, most: int | None) -> Labelled:
    """The test part of `wanted`, the data of the run with what is another now."""
    config, official = run.vqvae, wanted.test_data
    if official is None:
        if not len(split.test):
            raise DataError(
                f"{run.folder.path} was trained with --test {config.data.test:g}, which leaves none of "
                f"{len(image_set.images):,} images for testing; name some that it was not trained on with --test-data"
            )
        return _chosen(image_set, split.test[_at_random(len(split.test), most)])
    read = load_test_images(wanted, image_set.shape)
    return Labelled(read.images, classes_as_in(read, config.class_names, official)).drawn(most)


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
