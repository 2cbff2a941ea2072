"""The images of a run nearest to others by their codes, against all distances computed at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import Model, UsageError, load, nearest, train_vqvae
from pipeline.cli.main import main
from pipeline.data.splits import load_split
from tests.tiny import TINY_VQVAE, shapes, tiny_vqvae

IMAGES, TARGETS = shapes()


def searched(run: Path) -> np.ndarray:
    split = load_split(run / "vqvae" / "split.safetensors")
    assert len(split.test)
    return np.sort(np.concatenate([split.train, split.validation]))


def all_distances(run: Path, images: np.ndarray) -> np.ndarray:
    """From each image to each that is looked through, between the vectors that stand for their codes."""
    model = load(run)
    decode = model.vqvae.network.levels.decode
    ours, theirs = (
        decode(tuple(level for level in model.encode(those))).double().flatten(1).numpy()
        for those in (images, IMAGES[searched(run)])
    )
    return np.sqrt(np.square(ours[:, None] - theirs[None]).sum(2))


@pytest.mark.parametrize("at_a_time", [3, 64])
def test_the_nearest_are_those_of_all_distances(trained: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(Model, "images_at_a_time", at_a_time)
    wanted = 255 - IMAGES[:7]
    found, expected = nearest(trained, wanted, data=IMAGES, targets=TARGETS, k=5), all_distances(trained, wanted)
    order = expected.argsort(1, kind="stable")[:, :5]
    np.testing.assert_allclose(found.distances, np.take_along_axis(expected, order, 1), atol=1e-6)
    # Which of equally near ones comes first is a matter of rounding.
    rows = np.searchsorted(searched(trained), found.indices)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, 1), found.distances, atol=1e-6)
    assert all(len(set(row)) == 5 for row in found.indices.tolist())
    assert np.array_equal(found.images(2), IMAGES[found.indices[2]])
    assert found.names(2) == [str(index) for index in found.indices[2]]


def test_an_image_of_the_run_is_nearest_to_itself_and_one_of_the_test_part_is_not_found(trained: Path) -> None:
    known = searched(trained)
    found = nearest(trained, IMAGES[known], data=torch.from_numpy(IMAGES), targets=TARGETS, k=1)
    np.testing.assert_allclose(found.distances, 0, atol=1e-5)
    left_out = np.setdiff1d(np.arange(len(IMAGES)), known)
    found = nearest(trained, IMAGES[left_out], data=IMAGES, targets=TARGETS, k=len(known))
    assert len(left_out) and np.array_equal(np.sort(found.indices, 1), np.tile(known, (len(left_out), 1)))


def test_levels_and_numbers_have_distances_too(tmp_path: Path) -> None:
    kinds = {"levels": {**TINY_VQVAE, "levels": 2, "level_kind": "residual"}, "numbers": tiny_vqvae("none")}
    for name, options in kinds.items():
        run = train_vqvae(out=name, images=IMAGES, **{**options, "steps": 1}).run
        found = nearest(run, IMAGES[:2], data=IMAGES, k=3)
        expected = np.sort(all_distances(run, IMAGES[:2]), 1)[:, :3]
        np.testing.assert_allclose(found.distances, expected, atol=1e-5)


def test_the_command_prints_names_and_shows_each_image_before_its_nearest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index, image in enumerate(IMAGES):
        Image.fromarray(image[0]).save(tmp_path / "data" / f"{index}.png")
    train_vqvae(data="data", out="run", **{**TINY_VQVAE, "steps": 1})
    arguments = ["nearest", "data/3.png", "data", "--run", "run", "--k", "2", "--quiet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 3 * 41 and lines[0] == "data/3.png:" and lines[3] == "data/0.png:"
    names = [line.split()[1] for line in lines[1:3]]
    found = nearest("run", IMAGES[3:4], k=2)
    assert names == found.names(0) and all((tmp_path / "data" / name).is_file() for name in names)
    with Image.open("nearest.png") as picture:
        width, height = picture.size
    assert height / width == pytest.approx(41 * 8 / (3 * 12), rel=0.1)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2 and "nearest.png exists already" in again.output


def test_more_than_there_are_is_refused_with_both_numbers(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"--k 39: .* has 38 images to look through"):
        nearest(trained, IMAGES[:1], data=IMAGES, targets=TARGETS, k=39)
    with pytest.raises(UsageError, match="no images to find others for"):
        nearest(trained, IMAGES[:0], data=IMAGES)
