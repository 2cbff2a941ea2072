"""Sets of images under the judge of the digits: real ones, noise, copies of training images, some digits alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import reduce

from pipeline.config.data import DataConfig
from pipeline.config.evaluation import EvaluateConfig
from pipeline.data.datasets import EMBEDDED_NAMES, embedded_digits
from pipeline.data.image_set import from_array
from pipeline.data.splits import split
from pipeline.errors import UsageError
from pipeline.evaluation.judge import training
from pipeline.evaluation.measures.distances import frechet_distance
from pipeline.evaluation.measures.means import fraction_of
from pipeline.evaluation.measures.memory import nearest_trained, repeats
from pipeline.evaluation.measures.sets import field_figures, left_out, set_figures
from pipeline.evaluation.parts import Labelled, Parts
from pipeline.evaluation.yardstick import Judged, Yardstick, near_quantile, yardstick_of
from pipeline.reporting import Silent
from pipeline.runs.evaluation import Figure

CPU = torch.device("cpu")


def digits() -> Parts:
    """Of 8x8 pixels: 650 to test on, 650 for validation, 497 to train on."""
    config = DataConfig(test=0.3617, validation=0.3617)
    images, labels = embedded_digits()
    small = reduce(images.astype(np.float32), "n c (h 4) (w 4) -> n c h w", "mean").round().astype(np.uint8)
    image_set = from_array(small, labels, EMBEDDED_NAMES, config)
    parts = split(len(image_set.images), config, seed=0)
    empty = Parts(image_set, parts, Labelled(image_set.images[:0], None))
    return replace(empty, test=empty.labelled(parts.test))


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yardstick]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "_FEWEST_STEPS", 50)
        yield yardstick_of(digits(), EvaluateConfig(), flip=False, device=CPU, reporter=Silent())


@pytest.fixture(scope="module")
def floor(yardstick: Yardstick) -> Judged:
    return yardstick.floor


def test_the_judge_is_right_on_real_images(yardstick: Yardstick, floor: Judged) -> None:
    assert yardstick.images == 650 and yardstick.facts.learned == "classes"
    assert yardstick.facts.accuracy.value > 0.8
    figures = floor.figures
    assert abs(figures["class_shown"].value - yardstick.facts.accuracy.value) < 0.04
    assert abs(figures["kernel_distance"].value) < 4 * (figures["kernel_distance"].error or 0)
    assert min(figures[name].value for name in ("precision", "recall", "coverage")) > 0.8
    assert figures["near_copies"].value == pytest.approx(0.01, abs=0.006)


def test_the_score_of_the_training_images_themselves_is_the_accuracy_of_the_judge(yardstick: Yardstick) -> None:
    trained = yardstick.parts.labelled(yardstick.parts.train)
    figures = yardstick.trained_on(*trained)
    test = yardstick.real["test"]
    assert figures["classification_accuracy_score"].value == yardstick.judge.is_right(*test).mean()


def test_noise_is_worst_in_every_figure(yardstick: Yardstick, floor: Judged) -> None:
    real = yardstick.real["validation"]
    noise = np.random.default_rng(0).integers(0, 256, real.images.shape).astype(np.uint8)
    halves = np.where(np.random.default_rng(1).random(real.images.shape) < 0.3, noise, real.images)
    worst, worse = (yardstick.measured(images, real.labels, 0.0) for images in (noise, halves))
    for name in ("precision", "coverage", "class_shown", "classification_accuracy_score", "density"):
        assert worst.figures[name].value < worse.figures[name].value < floor.figures[name].value, name
    for name in ("kernel_distance", "nearest_distance"):
        assert worst.figures[name].value > worse.figures[name].value > floor.figures[name].value, name
    features = [yardstick.judge.features(images) for images in (noise, halves, real.images)]
    distances = [frechet_distance(yardstick.features["test"], own) for own in features]
    assert distances == sorted(distances, reverse=True)


def test_copies_of_training_images_are_caught_by_memory_alone(yardstick: Yardstick, floor: Judged) -> None:
    trained = yardstick.parts.labelled(np.resize(yardstick.parts.train, yardstick.images))
    nearest = yardstick.nearest(trained.images)
    figures = yardstick.compared(*trained, "test")
    assert (nearest.distances == 0).all() and near_quantile(yardstick.floor.nearest) > 0
    np.testing.assert_array_equal(nearest.indices, np.resize(yardstick.parts.train, yardstick.images))
    assert figures["precision"].value > floor.figures["precision"].value - 0.1
    assert floor.figures["nearest_distance"].value > 0.1


def test_a_mirrored_copy_is_a_copy_where_training_mirrored_images(yardstick: Yardstick) -> None:
    mirrored = yardstick.parts.image_set.images[yardstick.parts.train[:50], :, :, ::-1]
    assert (replace(yardstick, flip=True).nearest(mirrored).distances == 0).all()
    assert (yardstick.nearest(mirrored).distances > 0).mean() > 0.9


def test_digits_that_are_missing_show_in_recall_and_coverage(yardstick: Yardstick, floor: Judged) -> None:
    images, labels = yardstick.real["validation"]
    assert labels is not None
    kept = np.resize(np.flatnonzero(labels < 5), len(images))
    figures = yardstick.compared(images[kept], labels[kept], "test")
    for name in ("recall", "coverage"):
        assert figures[name].value < 0.65 < floor.figures[name].value, name
    assert figures["precision"].value > floor.figures["precision"].value - 0.05
    assert figures["kernel_distance"].value > 10 * floor.figures["kernel_distance"].value


def test_sets_are_as_large_as_the_smaller_part(yardstick: Yardstick) -> None:
    parts = yardstick.parts
    with pytest.raises(UsageError, match="--n 651: there are 650 test and 650 validation images"):
        yardstick_of(parts, EvaluateConfig(n=651), flip=False, device=CPU, reporter=Silent())
    few = Labelled(np.arange(10).reshape(10, 1, 1, 1).astype(np.uint8), np.arange(10)).drawn(4)
    np.testing.assert_array_equal(few.images.ravel(), few.labels)
    assert few.labels is not None and len(set(few.labels)) == 4


def test_a_figure_is_left_out_where_images_are_too_few_for_it() -> None:
    rng = np.random.default_rng(0)
    names = {n: set(set_figures(rng.normal(size=(n, 4)), rng.normal(size=(n, 4)))) for n in (19, 20, 40, 1000)}
    others = {"precision", "recall", "density", "coverage"}
    assert names[19] == set() and names[20] == {"kernel_distance"}
    assert names[40] == {"kernel_distance"} | others and names[1000] == names[40] | {"frechet_distance"}
    assert "takes 20" in str(left_out(19, 4)) and "10 for each of 4 features" in str(left_out(20, 4))
    assert "1,000" in str(left_out(40, 4)) and left_out(1000, 4) is None


def test_kernel_distances_by_the_network_of_the_field_are_kid() -> None:
    rng = np.random.default_rng(0)
    real, others = rng.random((2, 24, 50))
    figures = field_figures(real, others)
    assert figures == {"kid": set_figures(real, others)["kernel_distance"]}
    many = field_figures(rng.random((1000, 3)), rng.random((1000, 3)))
    assert set(many) == {"fid", "kid"} and field_figures(real[:19], others) == {}


def test_the_nearest_image_is_that_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    trained = rng.integers(0, 256, (60, 3, 5, 4)).astype(np.uint8)
    images = rng.integers(0, 256, (7, 3, 5, 4)).astype(np.uint8)
    images[3] = trained[41]
    indices = np.arange(1, 60, 2)
    found = nearest_trained(images, trained, indices, CPU, Silent())
    distances = np.array([[np.sqrt(((a / 255 - trained[i] / 255) ** 2).mean()) for i in indices] for a in images])
    np.testing.assert_array_equal(found.indices, indices[distances.argmin(1)])
    np.testing.assert_allclose(found.distances, distances.min(1), atol=1e-12)
    assert found.distances[3] == 0 and found.indices[3] == 41


def test_a_code_map_is_repeated_when_all_its_levels_are() -> None:
    coarse, fine = torch.tensor([[[1]], [[2]]], dtype=torch.int16), torch.tensor([[[3, 4]], [[5, 6]]])
    both = (torch.cat([coarse, coarse[:1]]), torch.cat([fine, fine[1:]]))
    assert repeats(both, [(coarse, fine)]).tolist() == [True, True, False]
    assert repeats(both, [(coarse, fine), (both[0][2:], both[1][2:])]).all()


def test_a_fraction_of_0_or_1_is_not_certain() -> None:
    none, half = fraction_of(np.zeros(20, bool)), fraction_of(np.arange(1000) % 2 == 0)
    assert none.value == 0 and none.error == pytest.approx((2 / 24 * 22 / 24 / 24) ** 0.5)
    assert half.value == 0.5 and half.error == pytest.approx((0.25 / 1000) ** 0.5, rel=0.01)


def test_figures_are_written_with_their_errors() -> None:
    assert str(Figure(0.12345, 0.00678)) == "0.1235 +- 0.007" and str(Figure(3.0)) == "3"


def test_where_training_images_lie_decides_nothing(tmp_path: Path, yardstick: Yardstick) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, yardstick.parts.image_set.images.shape)
    mapped[:] = yardstick.parts.image_set.images
    there = nearest_trained(yardstick.real["test"].images[:20], mapped, yardstick.parts.train, CPU, Silent())
    np.testing.assert_array_equal(there.distances, yardstick.nearest(yardstick.real["test"].images[:20]).distances)
