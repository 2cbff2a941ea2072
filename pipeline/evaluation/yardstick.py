"""What all runs of one data set are measured by: a judge, and real images that no training looked at."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline.config.evaluation import MOST_BY_DEFAULT, EvaluateConfig
from pipeline.errors import UsageError, WeightsUnavailableError
from pipeline.evaluation.judge.judge import Judge, accuracy_of_training_on, judge_of
from pipeline.evaluation.measures.inception import InceptionFeatures, inception
from pipeline.evaluation.measures.means import fraction_of, mean_of
from pipeline.evaluation.measures.memory import Nearest, nearest_trained
from pipeline.evaluation.measures.sets import field_figures, images_for_frechet, left_out, set_figures
from pipeline.evaluation.parts import Labelled, Parts
from pipeline.reporting import Reporter
from pipeline.resources import check_memory
from pipeline.runs.evaluation import Figure, JudgeFacts

_QUANTILE = 0.01  # of the distances of other images to their nearest training images
_COPIES = 12  # of the bytes of a set: both parts, reconstructions, samples, and what is computed of some of them

Part = Literal["test", "validation"]


class Judged(NamedTuple):
    """The figures of a set of images, and the nearest training image of each."""

    figures: dict[str, Figure]
    nearest: Nearest


@dataclass(frozen=True)
class Yardstick:
    """The judge, and as many images of the test and of the validation part as each set of samples has."""

    judge: Judge
    parts: Parts
    real: dict[Part, Labelled]
    features: dict[Part, Float[np.ndarray, "n d"]]
    flip: bool  # whether a training mirrored images
    device: torch.device
    reporter: Reporter
    inception: InceptionFeatures | None = None
    inception_features: dict[Part, Float[np.ndarray, "n 2048"]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Of each set."""
        return len(self.real["test"].images)

    @property
    def with_classes(self) -> bool:
        """Whether the judge knows classes, and the test images have them."""
        return self.judge.learned == "classes" and self.real["test"].labels is not None

    @cached_property
    def facts(self) -> JudgeFacts:
        """The judge, and how often it is right on test images; on validation images where only those have classes."""
        learned = self.judge.learned
        images, labels = self.real["validation" if learned == "classes" and not self.with_classes else "test"]
        right = self.judge.is_right(images, labels if learned == "classes" else None)
        accuracy = fraction_of(right == 1) if learned == "classes" else mean_of(right)
        return JudgeFacts(number=self.judge.number, sha256=self.judge.sha256, learned=learned, accuracy=accuracy)

    @cached_property
    def floor(self) -> Judged:
        """The validation images in place of samples."""
        return self.measured(*self.real["validation"])

    def compared(
        self, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray | None, part: Part
    ) -> dict[str, Figure]:
        """The figures of a set of images against those of a part, and how many show the class they should."""
        found = set_figures(self.features[part], self.judge.features(images))
        if self.inception is not None:
            found |= field_figures(self.inception_features[part], self.inception.features(images))
        if self.with_classes and labels is not None:
            found["class_shown"] = fraction_of(self.judge.is_right(images, labels) == 1)
        return found

    def measured(
        self, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray | None, near: float | None = None
    ) -> Judged:
        """All figures of a set of images against the test part. A near copy has a training image within `near`; without
        it, as the nearest 1 % of these images."""
        nearest = self.nearest(images)
        found = {**self.compared(images, labels, "test"), **self.trained_on(images, labels)}
        found["nearest_distance"] = mean_of(nearest.distances)
        found["near_copies"] = fraction_of(nearest.distances <= (near_quantile(nearest) if near is None else near))
        return Judged(found, nearest)

    def trained_on(self, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray | None) -> dict[str, Figure]:
        """Classification accuracy score: how often a network like the judge, trained on these images, is right on test
        images (Ravuri and Vinyals 2019)."""
        test = self.real["test"]
        if not self.with_classes or labels is None or test.labels is None:
            return {}
        right = accuracy_of_training_on(
            images,
            labels,
            test.images,
            test.labels,
            num_classes=len(self.judge.class_names),
            number=self.judge.number,
            device=self.device,
        )
        return {"classification_accuracy_score": fraction_of(right)}

    def nearest(self, images: UInt8[np.ndarray, "n c h w"]) -> Nearest:
        """The nearest training image of each image; where training mirrored them, also of the image mirrored."""
        everything = (self.parts.image_set.images, self.parts.train, self.device, self.reporter)
        found = nearest_trained(images, *everything)
        if not self.flip:
            return found
        mirrored = nearest_trained(images[..., ::-1], *everything)
        nearer = mirrored.distances < found.distances
        return Nearest(
            np.where(nearer, mirrored.distances, found.distances), np.where(nearer, mirrored.indices, found.indices)
        )


def near_quantile(nearest: Nearest) -> float:
    """As near to a training image as the nearest 1 % of images are."""
    return float(np.quantile(nearest.distances, _QUANTILE))


def yardstick_of(
    parts: Parts, config: EvaluateConfig, *, flip: bool, device: torch.device, reporter: Reporter
) -> Yardstick:
    """The judge of a data set, trained or found in the cache, and n images of each part with their features.

    Raises UsageError where there are not so many, and ResourceError where memory does not hold them.
    """
    n = _images_of_each(parts, config)
    what = f"measuring sets of {n:,} images"
    check_memory(torch.device("cpu"), _COPIES * n * parts.image_set.images[0].size, what, "choose a smaller --n")
    judge = judge_of(parts.image_set, parts.train, number=config.judge, reporter=reporter, device=device)
    real: dict[Part, Labelled] = {"test": parts.test.drawn(n), "validation": parts.validation(n)}
    features = {part: judge.features(labelled.images) for part, labelled in real.items()}
    notes = (_without_classes(judge, parts.test), _known(parts), left_out(n, features["test"].shape[1]))
    bare = Yardstick(judge, parts, real, features, flip, device, reporter, notes=tuple(note for note in notes if note))
    return _with_inception(bare) if config.inception else bare


def _without_classes(judge: Judge, test: Labelled) -> str | None:
    if judge.learned == "classes" and test.labels is not None:
        return None
    why = "the test images have no classes" if judge.learned == "classes" else "there are no classes, or one alone"
    return f"no class shown and no classification accuracy score: {why}"


def _known(parts: Parts) -> str | None:
    if not parts.known:
        return None
    return f"{parts.known:,} of {len(parts.test.images):,} test images equal one that training has seen"


def _with_inception(bare: Yardstick) -> Yardstick:
    """With the network of FID, or a note of why it is not to be had."""
    try:
        network = inception(bare.device, bare.reporter)
    except WeightsUnavailableError as error:
        return replace(bare, notes=(*bare.notes, f"no FID: {error}"))
    features = {part: network.features(labelled.images) for part, labelled in bare.real.items()}
    needed = images_for_frechet(features["test"].shape[1])
    few = f"no FID, but KID: it takes {needed:,} images of each set, and there are {bare.images:,}"
    notes = bare.notes if bare.images >= needed else (*bare.notes, few)
    return replace(bare, inception=network, inception_features=features, notes=notes)


def _images_of_each(parts: Parts, config: EvaluateConfig) -> int:
    there = min(len(parts.test.images), len(parts.split.validation))
    if config.n is not None and config.n > there:
        raise UsageError(
            f"--n {config.n:,}: there are {len(parts.test.images):,} test and {len(parts.split.validation):,} "
            f"validation images, and sets are compared that are of one size; choose {there:,} at most"
        )
    return config.n or (there if config.inception else min(there, MOST_BY_DEFAULT))
