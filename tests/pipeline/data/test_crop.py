"""Windows cut at random out of images with a margin, in training alone; all else sees the centre."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import UsageError, train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet, from_array
from pipeline.data.kept import cache
from pipeline.data.loading import load_images, load_test_images
from pipeline.data.record import hashes, what_changed
from pipeline.data.splits import Split, pixel_variance
from pipeline.randomness import batch_indices, crops
from pipeline.training.inputs.batches import ImageBatches

CPU = torch.device("cpu")


def photos(root: Path, sizes: list[tuple[int, int]]) -> Path:
    """Noise of these heights and widths."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f"{index}.png")
    return root


def noise(n: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 1, *size), dtype=np.uint8)


def config(**options: Any) -> DataConfig:
    return DataConfig(image_size="16x24", crop="random", **options)


@pytest.mark.parametrize("shared", [False, True])
def test_images_have_an_eighth_more_around_the_centre_window_that_is_seen(tmp_path: Path, shared: bool) -> None:
    root = photos(tmp_path / "photos", [(18, 27), (36, 54), (40, 90)])
    found = load_images(config(data=str(root)), shared=shared)
    assert found.decoded.shape == (3, 3, 18, 27)
    assert found.images.shape == (3, 3, 16, 24) and found.shape == (3, 16, 24) and found.positions == 3 * 4
    with Image.open(root / "0.png") as image:
        whole = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(found.decoded[0], whole) and np.array_equal(found.images[0], whole[:, 1:17, 1:25])
    as_centre = load_images(DataConfig(data=str(root), image_size="18x27"))
    assert np.array_equal(found.decoded, as_centre.images), "a rectangle's size in proportion"
    assert found.fingerprint != as_centre.fingerprint


@pytest.mark.parametrize("shared", [False, True])
def test_an_image_of_the_windows_size_is_itself_and_its_border_repeated(tmp_path: Path, shared: bool) -> None:
    """A picture that `gen sample` drew is not enlarged; and a margin of small images is made, not found."""
    root = photos(tmp_path / "photos", [(16, 24), (80, 80)])
    found = load_images(config(data=str(root)), shared=shared)
    with Image.open(root / "0.png") as image:
        own = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(found.images[0], own)
    assert np.array_equal(found.decoded[0], np.pad(own, ((0, 0), (1, 1), (1, 2)), mode="edge"))


def test_arrays_are_cut_as_files_are() -> None:
    array = noise(4, (16, 24))
    found = from_array(array, None, (), config())
    assert np.array_equal(found.images, array) and found.decoded.shape == (4, 1, 18, 27)
    larger = noise(4, (18, 27))
    found = from_array(larger, None, (), config())
    assert np.array_equal(found.decoded, larger) and np.array_equal(found.images, larger[:, :, 1:17, 1:25])
    assert from_array(noise(4, (90, 90)), None, (), config()).decoded.shape == (4, 1, 18, 27)


def test_without_a_size_there_is_nothing_to_cut_at_random() -> None:
    for images in (None, noise(8, (16, 24))):
        with pytest.raises(UsageError, match=r"--crop random cuts windows of --image-size .*; give --image-size"):
            train_vqvae(out="run", crop="random", images=images)
    assert not Path("run").exists()


def test_training_batches_are_cut_at_random_by_seed_epoch_and_image_and_no_others() -> None:
    found = from_array(noise(40, (18, 27)), None, (), config())
    parts = Split(np.arange(7, 40), np.arange(7), np.arange(0))
    data, batch = ImageBatches(found, parts, False, 5), batch_indices(5, 3, 16, 33)
    positions = crops(5, batch, 33, 12)
    assert len(set(positions.tolist())) > 5
    expected = [
        found.decoded[7 + item][:, position // 4 : position // 4 + 16, position % 4 : position % 4 + 24]
        for item, position in zip(batch.items, positions, strict=True)
    ]
    assert np.array_equal(data.training_batch(batch, CPU).numpy(), np.stack(expected))
    assert found.positions == 12 and found.windows(np.array([3]), np.array([11])).shape == (1, 1, 16, 24)
    [validation] = data.validation_batches(0, 1, CPU)
    assert np.array_equal(validation.numpy(), found.images[:7]), "the centre"


def test_every_position_gives_another_window_and_a_copy() -> None:
    found = from_array(noise(1, (18, 27)), None, (), config())
    every = found.windows(np.zeros(12, np.int64), np.arange(12))
    assert len({window.tobytes() for window in every}) == 12
    assert np.array_equal(every[1 * 4 + 1], found.images[0]), "the centre is one of them"
    every[:] = 0
    assert found.decoded.any()


def test_the_variance_is_that_of_what_is_seen() -> None:
    images = noise(6, (18, 27))
    images[:, :, 1:17, 1:25] = np.arange(6).reshape(6, 1, 1, 1)
    found = from_array(images, None, (), config())
    assert pixel_variance(found, np.arange(6)) == pytest.approx(np.var(np.arange(6) / 255))


def test_a_change_in_the_margin_is_a_change_and_so_is_another_window(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", [(18, 27)] * 3)
    before = load_images(config(data=str(root)))
    with Image.open(root / "1.png") as image:
        image.putpixel((26, 17), (1, 2, 3))
        image.save(root / "1.png")
    after = load_images(config(data=str(root)))
    assert np.array_equal(before.images, after.images) and before.fingerprint != after.fingerprint
    assert what_changed(hashes(before), after) == "1 changed (1.png)"


def test_an_official_test_part_is_seen_as_the_other_images_are(tmp_path: Path) -> None:
    root = str(photos(tmp_path / "photos", [(36, 54), (90, 60)]))
    found = load_images(config(data=root))
    official = load_test_images(config(data="elsewhere", test_data=root), found.shape)
    assert np.array_equal(official.images, found.images)


def shared_sets(data: str, *options: dict[str, Any]) -> list[ImageSet]:
    return [load_images(DataConfig(data=data, **own), shared=True) for own in options]


def test_sets_that_are_decoded_differently_are_kept_side_by_side(tmp_path: Path) -> None:
    root = str(photos(tmp_path / "photos", [(36, 54)] * 2))
    size: dict[str, Any] = {"image_size": "16x24"}
    whole = {**size, "draft": False}
    shared_sets(root, size, {**size, "crop": "random"}, whole, {**whole, "crop": "random"}, {"image_size": "18x27"})
    assert len(cache.entries()) == 5
    shared_sets(root, {}, {"draft": False})
    assert len(cache.entries()) == 6, "with the images' own size no JPEG is decoded smaller"


def test_what_older_versions_have_kept_is_used(tmp_path: Path) -> None:
    """Names of folders of the cache, and a fingerprint, as they were before there were --crop and --draft."""
    for index in range(2):
        path = tmp_path / "photos" / f"{index}.pgm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"P5 6 4 255\n" + bytes(range(index, index + 24)))
        os.utime(path, ns=(10**18, 10**18))
    own, _ = shared_sets(str(path.parent), {"draft": False}, {"draft": False, "image_size": "2x3"})
    assert own.fingerprint == "dc69c2c8a53194b3d953a9edd0bc36901233e477e6e1e26218deef13c24cd833"
    kept = {entry.folder.name for entry in cache.entries()}
    assert kept == {"07de06257a3b14a35695322118232396", "b148b5b71ee4f08912a6b51ea28103f3"}
