"""What a run says of images that it could not read, and of those that are others than before."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import DataError, train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_images
from pipeline.data.record import hashes, what_changed
from pipeline.reporting import Silent
from tests.tiny import TINY_VQVAE


def photos(root: Path, n: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for index in range(n):
        path = root / ("even" if index % 2 == 0 else "odd") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def read(root: Path) -> ImageSet:
    return load_images(DataConfig(data=str(root)))


def train(root: Path, **options: object) -> str:
    """Train a run on these images; what is said."""
    lines: list[str] = []

    class Noted(Silent):
        def say(self, text: str) -> None:
            lines.append(text)

    train_vqvae(out="run", data=str(root), reporter=Noted(), **{**TINY_VQVAE, "steps": 1, **options})
    return "\n".join(lines)


def test_what_has_changed_is_said_by_the_names_of_the_files(tmp_path: Path) -> None:
    then = hashes(read(root := photos(tmp_path / "photos")))
    (root / "odd" / "1.png").rename(root / "odd" / "21.png")
    (root / "odd" / "3.png").unlink()
    Image.new("RGB", (8, 8), "red").save(root / "even" / "4.png")
    assert what_changed(then, read(root)) == "1 new (odd/21.png); 2 missing; 1 changed (even/4.png)"
    for index in range(100, 110):
        Image.new("RGB", (8, 8), "red").save(root / "odd" / f"{index}.png")
    assert what_changed(then, read(root)).startswith("11 new (odd/21.png, odd/100.png, odd/101.png, ...); 2 missing")


def test_a_resumed_run_says_what_has_changed(tmp_path: Path) -> None:
    train(root := photos(tmp_path / "photos"))
    (root / "odd" / "3.png").unlink()
    Image.new("RGB", (8, 8), "red").save(root / "odd" / "99.png")
    shape = "3 x 8 x 8"
    with pytest.raises(
        DataError, match=rf"there are 12 of {shape}, and were 12 of {shape}; 1 new \(odd/99.png\); 1 mis"
    ):
        train_vqvae(out="run", resume="auto", steps=2)
    (root / "odd" / "99.png").unlink()
    Path("run/vqvae/images.safetensors").unlink()  # as the versions before had it
    with pytest.raises(
        DataError, match=rf"run was trained on: there are 11 of {shape}, and were 12 of {shape}\. Bring"
    ):
        train_vqvae(out="run", resume="auto", steps=2)


def test_other_classes_of_the_same_images_are_said_to_be_that(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    train_vqvae(out="run", images=images, targets=np.arange(12) % 2, **{**TINY_VQVAE, "steps": 1})
    with pytest.raises(DataError, match="the pixels are the same, their order or their classes are not"):
        train_vqvae(out="run", images=images, targets=np.arange(12) % 3, resume="auto", steps=2)
    with pytest.raises(DataError, match=r"there are 12 of 1 x 8 x 4, and were 12 of 1 x 8 x 8\. Bring"):
        train_vqvae(out="run", images=images[..., :4], targets=np.arange(12) % 2, resume="auto", steps=2)


def test_all_skipped_images_are_listed_in_the_run(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    for index in range(20):
        (root / "odd" / f"x{index}.jpg").write_text("<html>")
    said = train(root, on_bad_image="skip")
    assert re.search(r"skipped 20 images, such as odd/x0\.jpg: not an image .*bad-images\.txt", said)
    lines = Path("run/vqvae/bad-images.txt").read_text().splitlines()
    assert lines == [f"odd/x{index}.jpg: not an image that Pillow can read" for index in range(20)]
    for path in root.glob("odd/x*"):
        path.unlink()
    train_vqvae(out="run", resume="auto", steps=2)
    assert not Path("run/vqvae/bad-images.txt").exists()


def test_a_run_on_folders_whose_names_are_not_utf8_is_finished(tmp_path: Path) -> None:
    """Once it ended with an error when all was trained and its README was to be written."""
    root = photos(tmp_path / "photos")
    (root / "odd").rename(str(root / "gr\udcfcn"))
    train(root)
    assert r"classes: even, gr\xfcn" in Path("run/README.md").read_text()
