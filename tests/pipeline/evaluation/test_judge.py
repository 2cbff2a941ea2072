"""Judges: what they learn and from what alone, that they judge each image by itself, and how they are kept."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits
from torch.nn import functional as F

from pipeline import DataError
from pipeline.cli.main import main
from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet, from_array
from pipeline.data.kept import cache
from pipeline.evaluation.judge import judge as judging
from pipeline.evaluation.judge import training as judge_training
from pipeline.evaluation.judge.judge import Judge, accuracy_of_training_on, judge_of
from pipeline.evaluation.judge.network import FEATURES, JudgeNetwork, Number
from pipeline.evaluation.judge.training import batch_size_for, learning_rate, steps_for, turned
from pipeline.randomness import batch_indices
from pipeline.reporting import Silent
from pipeline.storage import save_tensors, tensors_sha256, write_manifest
from tests.tiny import shapes

CPU = torch.device("cpu")
TEST = np.arange(1, 40, 3)
TRAIN = np.setdiff1d(np.arange(40), TEST)  # of 40 images
FEW = np.array([0, 1, 2, 5, 6, 7, 8, 10])  # of 12
numbers = pytest.mark.parametrize("number", [1, 2])


class Noted(Silent):
    """Keeps what is said, and how often something was trained."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.trained: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def steps(self, steps: range, description: str) -> Iterator[int]:
        self.trained.append(description)
        return super().steps(steps, description)


def image_set(n: int = 40, size: tuple[int, int] = (8, 8), channels: int = 1, classes: bool = True) -> ImageSet:
    images, labels = shapes(n, size, channels)
    return from_array(images, labels if classes else None, (), DataConfig())


def judge(images: ImageSet, train: np.ndarray = TRAIN, number: Number = 1, noted: Noted | None = None) -> Judge:
    return judge_of(images, train, number=number, reporter=noted or Noted(), device=CPU)


def same_tensors(one: Judge, other: Judge) -> bool:
    return tensors_sha256(one.network.state_dict()) == tensors_sha256(other.network.state_dict())


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[Number, Judge]:
    """Both judges of the small image set. Tests only read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {number: judge(image_set(), number=number) for number in (1, 2)}


@pytest.fixture(scope="module")
def cache_of_few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge]:
    """A cache that holds the judge of `FEW` of twelve images alone. Tests have copies."""
    folder = tmp_path_factory.mktemp("few") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_CACHE", str(folder))
        return folder, judge(image_set(12), FEW)


@pytest.fixture
def cached(cache_of_few: tuple[Path, Judge], tmp_path: Path) -> Judge:
    """The judge of `FEW` of twelve images, which the test's own cache holds."""
    shutil.copytree(cache_of_few[0], tmp_path / "cache")
    return cache_of_few[1]


@numbers
def test_classes_are_learned_and_seen_in_images_not_trained_on(judges: dict[Number, Judge], number: Number) -> None:
    images, found = image_set(), judges[number]
    assert images.labels is not None
    assert found.number == number and found.learned == "classes" and found.class_names == ("0", "1")
    right = found.is_right(images.images[TEST], images.labels[TEST])
    np.testing.assert_array_equal(right, found.predictions(images.images[TEST]) == images.labels[TEST])
    assert right.mean() == 1
    np.testing.assert_array_equal(found.is_right(images.images[TEST], 1 - images.labels[TEST]), 1 - right)


@numbers
def test_features_are_the_same_whatever_images_are_beside_it(judges: dict[Number, Judge], number: Number) -> None:
    images, found = np.concatenate([image_set().images] * 4), judges[number]
    features = found.features(images)
    assert features.shape == (160, FEATURES) and FEATURES <= 64 and features.dtype == np.float64
    for part in (slice(0, 1), slice(63, 66), slice(7, 120), slice(None, None, -1)):
        np.testing.assert_array_equal(found.features(images[part]), features[part])
    assert found.features(images[:0]).shape == (0, FEATURES) and len(found.predictions(images[:0])) == 0
    head = found.network.head
    with torch.no_grad():
        logits = head(torch.from_numpy(features).float()).numpy()
    np.testing.assert_array_equal(found.predictions(images), logits.argmax(1))


@numbers
def test_training_twice_gives_the_same_judge_and_the_two_differ(judges: dict[Number, Judge], number: Number) -> None:
    again = judge(image_set(), number=number)  # in a cache of its own
    assert again.sha256 == judges[number].sha256 != judges[3 - number].sha256  # type: ignore[index]
    np.testing.assert_array_equal(again.features(image_set().images), judges[number].features(image_set().images))
    names = [{name.split(".")[-2] for name in found.network.state_dict()} for found in judges.values()]
    assert names[0] != names[1]


def test_the_test_part_is_not_seen() -> None:
    images, noted = image_set(12), Noted()
    first, pixels = judge(images, FEW, noted=noted), images.images.copy()
    pixels[[3, 4, 9, 11]] = 255 - pixels[[3, 4, 9, 11]]
    others = replace(images, decoded=pixels, fingerprint="other")
    assert same_tensors(judge(others, FEW, noted=noted), first) and len(noted.trained) == 2
    pixels[7] = 255 - pixels[7]
    assert not same_tensors(judge(replace(others, fingerprint="another"), FEW), first)


def test_a_judge_is_trained_once_for_each_data_set_and_split_and_number() -> None:
    images, noted = image_set(12), Noted()
    first = judge(images, FEW, noted=noted)
    kept = judge(images, FEW, noted=noted)
    assert noted.trained == ["judge 1"] and kept.sha256 == first.sha256 and noted.lines == []
    assert same_tensors(kept, first)
    np.testing.assert_array_equal(kept.features(images.images), first.features(images.images))
    others = [
        judge(images, FEW + 1, noted=noted),
        judge(images, FEW, number=2, noted=noted),
        judge(replace(images, fingerprint="other"), FEW, noted=noted),
    ]
    assert len(noted.trained) == len(cache.judges()) == len({other.sha256 for other in [first, *others]}) == 4
    judge(images, FEW, number=2, noted=noted)
    assert len(noted.trained) == 4


def test_another_recipe_makes_another_judge(cached: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "RECIPE", judge_training.RECIPE + 1)
    assert judge(image_set(12), FEW).sha256 != cached.sha256
    assert len(cache.judges()) == 2


@pytest.mark.parametrize("name", ["judge.safetensors", "judge.json", "manifest.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_damaged_judge_is_trained_again_which_is_said(cached: Judge, name: str, content: bytes | None) -> None:
    noted, images = Noted(), image_set(12)
    (folder,) = cache.judges()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    again = judge(images, FEW, noted=noted)
    assert again.sha256 == cached.sha256 and len(noted.trained) == 1
    assert len(noted.lines) == 1 and noted.lines[0].startswith("the judge in the cache is trained again: ")
    judge(images, FEW, noted=noted)
    assert len(noted.trained) == 1


def test_other_weights_under_a_true_manifest_are_found(cached: Judge, judges: dict[Number, Judge]) -> None:
    """As of a folder that was copied from another cache."""
    noted = Noted()
    (folder,) = cache.judges()
    save_tensors(folder / "judge.safetensors", judges[1].network.state_dict())
    write_manifest(folder, ["judge.json", "judge.safetensors"])
    assert judge(image_set(12), FEW, noted=noted).sha256 == cached.sha256
    assert "judge.safetensors is not the one that judge.json describes" in noted.lines[0]


def test_what_a_killed_training_left_is_removed() -> None:
    orphan = cache.judges_folder() / f".{'0' * 32}.abc.unfinished"
    orphan.mkdir(parents=True)
    judge(image_set(12), FEW)
    assert not orphan.exists() and len(cache.judges()) == 1


def test_a_training_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judging, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        judge(image_set(12), FEW)
    assert list(cache.judges_folder().iterdir()) == []


@pytest.mark.usefixtures("cached")
def test_the_command_lists_judges_and_clears_them() -> None:
    (folder,) = cache.judges()
    listed = CliRunner().invoke(main, ["cache"])
    assert listed.exit_code == 0 and re.search(r"judges +1, ", listed.output)
    with cache.alone_with(folder.name, Silent()):
        CliRunner().invoke(main, ["cache", "--clear"])
        assert folder.exists(), "another command reads or writes it"
    cleared = CliRunner().invoke(main, ["cache", "--clear"])
    assert cleared.exit_code == 0 and not folder.exists()


@numbers
def test_training_on_real_images_scores_what_the_judge_scores(judges: dict[Number, Judge], number: Number) -> None:
    images = image_set()
    assert images.labels is not None
    noise = np.random.default_rng(1).integers(0, 256, (64, 1, 8, 8), np.uint8)  # on which they are not all right
    test_images = np.concatenate([images.images[TEST], noise])
    test_labels = np.arange(len(test_images)) % 2
    right = accuracy_of_training_on(
        images.images[TRAIN],
        images.labels[TRAIN],
        test_images,
        test_labels,
        num_classes=2,
        number=number,
        device=CPU,
    )
    assert right.dtype == bool
    np.testing.assert_array_equal(right, judges[number].is_right(test_images, test_labels))
    assert 0 < right.mean() < 1


def test_noise_teaches_nothing_and_images_much() -> None:
    digits = load_digits()
    images, labels = (15 * digits.images[:, None]).astype(np.uint8), digits.target
    noise = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
    of_noise, of_images = (
        accuracy_of_training_on(
            few, labels[:60], images[60:460], labels[60:460], num_classes=10, number=2, device=CPU
        ).mean()
        for few in (noise, images[:60])
    )
    assert of_noise < 0.25 and of_images > 0.6, "of ten classes"


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_without_classes_the_ways_that_images_are_turned_are_learned(size: tuple[int, int]) -> None:
    """All images are bright in the upper left corner, so that each way shows."""
    pixels = np.random.default_rng(0).integers(0, 60, (60, 1, *size))
    pixels[:, :, : size[0] // 2] += 60
    pixels[:, :, :, : size[1] // 2] += 120
    images = from_array(pixels.astype(np.uint8), None, (), DataConfig())
    found = judge(images, np.arange(40))
    assert found.learned == "rotations" and found.class_names == ()
    right = found.is_right(images.images[40:], None)
    assert set(right * 4) <= {0, 1, 2, 3, 4} and right.mean() > 0.8
    assert (found.predictions(images.images[40:]) == 0).mean() > 0.8, "they are upright"


def test_of_images_of_a_single_class_the_ways_are_learned() -> None:
    images = image_set(8)
    one = replace(images, labels=np.zeros(8, np.int64), class_names=("only",))
    assert judge(one, np.arange(6)).learned == "rotations"
    assert judge(images, np.array([0, 2, 4])).learned == "rotations", "where the other class is in another part"


@pytest.mark.parametrize("size", [(6, 6), (5, 9)])
def test_each_way_is_another_and_keeps_the_shape(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, *size), np.uint8)
    ways = [turned(images, way) for way in range(4)]
    assert {way.shape for way in ways} == {images.shape} and len({way.tobytes() for way in ways}) == 4
    np.testing.assert_array_equal(turned(turned(images, 2), 2), images)


@numbers
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 32), (3, 16, 7), (1, 1, 5)])
def test_images_of_any_size_can_be_judged_and_no_pixel_is_left_out(shape: tuple[int, int, int], number: Number) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    images = from_array(pixels, np.arange(4) % 2, (), DataConfig())
    found = judge(images, np.arange(3), number)
    assert np.isfinite(found.features(pixels)).all() and found.features(pixels).shape == (4, FEATURES)


@numbers
@pytest.mark.parametrize("shape", [(3, 256, 256), (1, 33, 70), (1, 45, 45), (3, 9, 8)])
def test_every_pixel_has_an_effect(shape: tuple[int, int, int], number: Number) -> None:
    network = JudgeNetwork(number, shape, 2).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.MaxPool2d):  # each input of which may be the largest
            module.forward = partial(F.avg_pool2d, kernel_size=module.stride, ceil_mode=module.ceil_mode)  # type: ignore[method-assign]
    images = torch.zeros(1, *shape, requires_grad=True)
    (seen,) = torch.autograd.grad(network.features(images).square().sum(), images)
    assert (seen != 0).float().mean() > 0.99 and (seen[..., -1] != 0).any() and (seen[..., -1, :] != 0).any()


def test_few_images_are_enough_and_none_is_refused() -> None:
    images = image_set(6, (4, 4))  # whose last feature maps have one position
    assert np.isfinite(judge(images, np.array([0, 1])).features(images.images)).all()
    assert np.isfinite(judge(images, np.array([3])).features(images.images)).all()
    with pytest.raises(DataError, match="a judge is trained on 1 image at least; got 0"):
        judge(images, np.array([], np.int64))
    uneven = np.array([5, 0, 0, 0, 1, 1])  # of one class a single image, of others none
    found = judge(replace(images, labels=uneven, class_names=tuple("abcdef")), np.arange(6))
    assert found.learned == "classes" and found.network.head.out_features == 6


def test_training_leaves_random_numbers_settings_and_images_as_they_were() -> None:
    images = image_set(12)
    before, pixels = torch.get_rng_state(), images.images.copy()
    numpy_before = str(np.random.get_state())
    threads, exact = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    images.decoded.flags.writeable = False  # as of a mapped file
    judge(images, FEW).features(images.images)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpy_before
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, exact)
    np.testing.assert_array_equal(images.images, pixels)


def test_each_image_is_moved_by_pixels_of_its_own() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 8), np.uint8)
    moved = judge_training._moved(images, np.random.default_rng(1))
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (1, 1)), "reflect")
    found = set()
    for image, candidates in zip(moved, padded, strict=True):
        views = np.lib.stride_tricks.sliding_window_view(candidates, image.shape)[0]
        [(top, left)] = np.argwhere((views == image).all((2, 3, 4)))
        found.add((int(top), int(left)))
    assert len(found) > 10 and {top for top, _ in found} == set(range(5)) and {left for _, left in found} == {0, 1, 2}


def test_a_step_learns_from_moved_images() -> None:
    images, labels = shapes(40, (8, 8))
    examples = judge_training.Examples(images, np.arange(40), labels, 2)
    pixels, learned = judge_training._batch(examples, 0, 0)
    items = batch_indices(0, 0, batch_size_for(40), 40).items
    np.testing.assert_array_equal(learned.numpy(), labels[items])
    assert (pixels != torch.from_numpy(images[items])).flatten(1).any(1).float().mean() > 0.5


def test_steps_follow_from_the_number_of_images() -> None:
    steps = [steps_for(n) for n in range(1, 100_000, 37)]
    assert steps == sorted(steps) and steps[0] == 2 and steps[-1] == steps_for(10**7) < 2000
    assert steps_for(2000) == 300 and batch_size_for(1) == 2 and batch_size_for(10**6) == 128
    for total in (2, 7, 300):
        rates = [learning_rate(step, total) for step in range(total)]
        assert min(rates) > 0 and max(rates) <= judge_training._PEAK and rates[-1] <= rates[total // 2]
