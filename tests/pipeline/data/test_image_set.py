"""Every way images come in, and what is refused."""

import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import DataError
from pipeline.config.data import DataConfig
from pipeline.data.image_set import from_array
from pipeline.data.kept.cache import cache_folder
from pipeline.data.loading import load_images, load_test_images
from pipeline.data.sources.labelling import label_by_folder
from pipeline.data.sources.opening import open_source
from pipeline.data.splits import pixel_variance, split

COLOURS = {"blue sky": (0, 0, 200), "grün": (0, 150, 0)}


def folder_of_images(root: Path, per_class: int = 3, size: tuple[int, int] = (8, 8)) -> Path:
    """One folder a class, with names that a shell would stumble over."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            Image.new("RGB", size, (index, *colour[1:])).save(root / name / f"img {index}.png")
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    images = load_images(DataConfig(data=str(folder_of_images(tmp_path / "data"))))
    assert images.images.shape == (6, 3, 8, 8) and images.images.dtype == np.uint8
    assert images.class_names == ("blue sky", "grün")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.images[:, :, 0, 0].tolist() == [[i, *COLOURS[n][1:]] for n in COLOURS for i in range(3)]


def test_a_zip_is_the_same_as_its_folder_and_is_not_extracted(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, Path("wrapped") / path.relative_to(root))
        file.writestr("__MACOSX/wrapped/._img 0.png", b"resource fork")
    before = sorted(tmp_path.rglob("*"))
    zipped, folder = load_images(DataConfig(data=str(archive))), load_images(DataConfig(data=str(root)))
    np.testing.assert_array_equal(zipped.images, folder.images)
    assert zipped.fingerprint == folder.fingerprint and zipped.class_names == folder.class_names
    assert sorted(tmp_path.rglob("*")) == before


def test_a_flat_folder_has_no_classes_and_neither_has_a_mixed_one(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("L", (4, 4)).save(flat / "a.png")
    assert load_images(DataConfig(data=str(flat))).labels is None
    assert label_by_folder(("a.png", "sub/b.png")) is None
    assert label_by_folder(("x/deep/a.png", "y/b.png")) is not None


def test_damaged_members_of_a_zip_are_named_or_skipped(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data", size=(40, 40))
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, path.relative_to(root))
        start = file.getinfo("blue sky/img 0.png").header_offset
    content = bytearray(archive.read_bytes())
    content[start + 30 + len("blue sky/img 0.png") + 60] ^= 255  # within the first image: its CRC no longer fits
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)1 of 6 images.*blue sky/img 0\.png: Bad CRC"):
        load_images(DataConfig(data=str(archive)))
    assert len(load_images(DataConfig(data=str(archive), on_bad_image="skip")).images) == 5


def test_options_of_natural_types_are_taken(tmp_path: Path) -> None:
    assert DataConfig(image_size=32, data=tmp_path).size() == (32, 32)  # type: ignore[arg-type]


def test_images_are_sorted_as_people_count(tmp_path: Path) -> None:
    for name in ("img10.png", "img9.png", "img1.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert open_source(tmp_path, 1).names == ("img1.png", "img9.png", "img10.png")


def test_hidden_files_loops_of_links_and_dangling_links_are_passed_over(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    (root / ".hidden.png").write_bytes(b"x")
    (root / "blue sky" / "._img 0.png").write_bytes(b"x")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "a.png").write_bytes(b"x")
    (root / "blue sky" / "loop").symlink_to(root)
    (root / "blue sky" / "dangling.png").symlink_to(root / "nothing")
    (root / "notes.txt").write_text("x")
    assert len(open_source(root, 1).names) == 6


def test_bad_images_are_named_or_skipped(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    (root / "blue sky" / "broken.jpg").write_text("<html>")
    (root / "grün" / "empty.png").touch()
    with pytest.raises(
        DataError,
        match=r"(?s)2 of 8 images in .*data cannot be read.*broken\.jpg: not an image.*empty\.png: empty file",
    ):
        load_images(DataConfig(data=str(root)))
    images = load_images(DataConfig(data=str(root), on_bad_image="skip"))
    assert len(images.images) == 6 and len(images.skipped) == 2
    assert images.labels is not None and images.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (Image.new("L", (8, 12)), r"has 12x8 pixels where others have 8x8; choose a size with --image-size"),
        (Image.new("RGB", (8, 8), "red"), "is in colour where others are grey; choose with --colour"),
    ],
)
def test_an_image_unlike_the_first_ones_is_named(tmp_path: Path, odd: Image.Image, reason: str) -> None:
    """Once, all but the few that decide were cut or made grey without a word."""
    for index in range(130):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index:03d}.png")
    odd.save(tmp_path / "100.png")
    with pytest.raises(DataError, match=rf"(?s)1 of 130 images.*100\.png: {reason}"):
        load_images(DataConfig(data=str(tmp_path)))
    assert load_images(DataConfig(data=str(tmp_path), image_size="8", colour="grey")).images.shape == (130, 1, 8, 8)


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    for name in ("a.HEIC", "b.heic", "notes.txt", "LICENSE", ".hidden"):
        (root / name).touch()
    assert load_images(DataConfig(data=str(root))).passed_over == "2 .heic, 1 .txt, 1 without a suffix"
    assert load_images(DataConfig(data=str(root)), shared=True).passed_over == "2 .heic, 1 .txt, 1 without a suffix"


def test_an_image_of_absurd_size_is_named_and_not_decoded(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    Image.new("L", (30, 30)).save(root / "grün" / "huge.png")
    before = Image.MAX_IMAGE_PIXELS
    for limit in (600, 300):  # 900 pixels: less than twice as many, and more
        with pytest.raises(
            DataError, match=rf"(?s)1 of 7 images.*huge\.png: too many pixels \({limit} at most; a training"
        ):
            load_images(DataConfig(data=str(root), image_size="8", max_pixels=limit))
    assert len(load_images(DataConfig(data=str(root), image_size="8", max_pixels=900)).images) == 7
    assert before == Image.MAX_IMAGE_PIXELS, "Pillow's own limit is as it was"


@pytest.mark.parametrize("skip", [False, True])
def test_a_memory_mapped_set_equals_one_in_memory_and_is_decoded_once(tmp_path: Path, skip: bool) -> None:
    root = folder_of_images(tmp_path / "data")
    if skip:
        (root / "grün" / "broken.png").touch()
    config = DataConfig(data=str(root), on_bad_image="skip" if skip else "error")
    memory = load_images(config)
    mapped = load_images(config, shared=True)
    assert isinstance(mapped.images, np.memmap)
    np.testing.assert_array_equal(mapped.images, memory.images)
    assert mapped.labels is not None and memory.labels is not None
    np.testing.assert_array_equal(mapped.labels, memory.labels)
    assert (mapped.fingerprint, mapped.class_names) == (memory.fingerprint, memory.class_names)
    (entry,) = (cache_folder() / "decoded").iterdir()
    written = (entry / "images.npy").stat().st_mtime_ns
    assert isinstance(load_images(DataConfig(**{**vars(config), "memory_gib": 0})).images, np.memmap)
    assert (entry / "images.npy").stat().st_mtime_ns == written


def test_size_and_colour_are_taken_from_the_images_or_from_the_options(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 6), (9, 9, 9)).save(root / f"{index}.png")
    assert load_images(DataConfig(data=str(root))).shape == (1, 6, 8)
    assert load_images(DataConfig(data=str(root), colour="colour", image_size="4")).shape == (3, 4, 4)
    Image.new("RGB", (9, 9), (200, 9, 9)).save(root / "3.png")
    with pytest.raises(DataError, match=r"6x8.*--image-size"):
        load_images(DataConfig(data=str(root)))
    assert load_images(DataConfig(data=str(root), image_size="48x32")).shape == (3, 48, 32)


@pytest.mark.parametrize("size", ["0", "32x", "x32", "32x0", "-4", "big", "8x8x8"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="image-size"):
        DataConfig(image_size=size)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere"):
        load_images(DataConfig(data=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images under .*empty; looked for .*\.png"):
        load_images(DataConfig(data=str(tmp_path / "empty")))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt is neither a folder nor a readable \.zip"):
        load_images(DataConfig(data=str(tmp_path / "notes.txt")))


def test_the_embedded_digits_are_there_without_a_network() -> None:
    images = load_images(DataConfig())
    assert images.images.shape == (1797, 1, 32, 32)
    assert images.class_names[3] == "three"
    assert images.images.max() > 240 and images.images.min() == 0


def test_a_torchvision_dataset_says_that_it_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(datasets, "MNIST", unreachable)
    with pytest.raises(DataError, match=r"mnist could not be downloaded \(network is unreachable\); offline, pass"):
        load_images(DataConfig(data="mnist"))


def test_a_torchvision_dataset_becomes_images_with_named_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    class Small:
        targets, classes = [0, 1, 2, 0, 1, 2], ["cat", "dog", "ship"]

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            assert download and root.name == "torchvision"
            self.data = pixels if train else 255 - pixels

    monkeypatch.setattr(datasets, "CIFAR10", Small)
    images = load_images(DataConfig(data="cifar10"))
    np.testing.assert_array_equal(images.images, pixels.transpose(0, 3, 1, 2))
    assert images.class_names == ("cat", "dog", "ship")
    official = load_test_images(DataConfig(test_data="cifar10"), images.shape)
    np.testing.assert_array_equal(official.images, 255 - images.images)


def test_arrays_are_checked_and_cut() -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    images = from_array(array, np.array([0, 2, 1, 0]), (), DataConfig(image_size="4", colour="grey"))
    assert images.images.shape == (4, 1, 4, 4) and images.class_names == ("0", "1", "2")
    assert from_array(array, np.array([0, 2, 1, 0]), (), DataConfig(labels=False)).labels is None
    with pytest.raises(DataError, match=r"uint8.*float64"):
        from_array(array / 255, None, (), DataConfig())
    with pytest.raises(DataError, match=r"4 images but labels of shape \(3,\)"):
        from_array(array, np.array([0, 1, 2]), (), DataConfig())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[0], [1]]), r"2 images but labels of shape \(2, 1\)"),
        (np.array([0, 1, 2]), r"2 images but labels of shape \(3,\)"),
        (np.array([0, -1]), "whole numbers from 0 on; got -1"),
        (np.array([0.0, 0.9]), "whole numbers from 0 on; got float64"),
        (np.array(["cat", "dog"]), "whole numbers from 0 on; got <U3"),
    ],
)
def test_labels_are_checked(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_array(np.zeros((2, 1, 4, 4), np.uint8), labels, (), DataConfig())


def test_the_fingerprint_follows_pixels_and_labels() -> None:
    array = np.zeros((4, 1, 8, 8), np.uint8)
    prints = {from_array(array, labels, (), DataConfig()).fingerprint for labels in (None, np.arange(4))}
    changed = array.copy()
    changed[3, 0, 7, 7] = 1
    prints.add(from_array(changed, None, (), DataConfig()).fingerprint)
    prints.add(from_array(array.reshape(4, 1, 4, 16), None, (), DataConfig()).fingerprint)
    assert len(prints) == 4


def test_the_split_parts_all_images_and_follows_the_seed() -> None:
    tenth = DataConfig(validation=0.1, test=0.05)
    parts = split(100, tenth, seed=3)
    assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(100))
    assert len(parts.validation) == 10 and len(parts.test) == 5
    assert not np.array_equal(parts.validation, split(100, tenth, seed=4).validation)
    small, large = DataConfig(validation=0.001, test=0.9), DataConfig(validation=0.999, test=0.0)
    assert len(split(2, small, seed=0).validation) == len(split(2, large, seed=0).train) == 1
    with pytest.raises(DataError, match=r"2 images at least.*got 1"):
        split(1, tenth, seed=0)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize(("validation", "test"), [(0.999, 0.0), (0.001, 0.998), (0.5, 0.49), (0.3, 0.0)])
def test_no_image_of_few_is_in_two_parts_and_one_is_left_to_train_on(n: int, validation: float, test: float) -> None:
    parts = split(n, DataConfig(validation=validation, test=test), seed=0)
    assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(n))
    assert len(parts.train) >= 1 and len(parts.validation) >= 1


def test_a_test_part_takes_images_from_the_training_part_alone() -> None:
    without, with_one = (split(100, DataConfig(validation=0.1, test=test), seed=3) for test in (0.0, 0.3))
    assert len(without.test) == 0 and len(with_one.test) == 30
    assert np.array_equal(without.validation, with_one.validation)
    assert sorted([*with_one.train, *with_one.test]) == without.train.tolist()
    named = split(100, DataConfig(validation=0.1, test_data="elsewhere"), seed=3)
    assert len(named.test) == 0, "the official test part stands for it"
    assert DataConfig(validation=0.97, test_data="elsewhere").test_fraction == 0
    with pytest.raises(ValueError, match=r"--validation 0.5 and --test 0.5 leave no image to train on"):
        DataConfig(validation=0.5, test=0.5)


def test_the_pixel_variance_is_that_of_the_fractions() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), dtype=np.uint8)
    chosen = np.arange(0, 50, 2)
    values = [Fraction(value, 255) for value in images[chosen].ravel().tolist()]
    mean = sum(values) / len(values)
    exact = sum((value - mean) ** 2 for value in values) / len(values)
    assert pixel_variance(from_array(images, None, (), DataConfig()), chosen) == float(exact)


CLASSES = ("2", "10", "Cat", "cat", "cat 9", "cat 10", "dog", "\u00e4ffin")


def test_classes_are_numbered_in_the_natural_order_of_their_folders(tmp_path: Path) -> None:
    """Class k of an earlier run is class k: capitals first, numbers as people count, letters beyond ASCII last."""
    for name in reversed(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (4, 4), CLASSES.index(name)).save(tmp_path / "data" / name / "a.png")
    images = load_images(DataConfig(data=str(tmp_path / "data")))
    assert images.class_names == CLASSES
    assert images.labels is not None and images.labels.tolist() == images.images[:, 0, 0, 0].tolist()
    names = tuple(f"{name}/{index}.png" for index in range(2) for name in reversed(CLASSES))
    labelling = label_by_folder(names)
    assert labelling is not None and labelling.class_names == CLASSES
    assert labelling.labels == (*reversed(range(8)), *reversed(range(8)))


def test_the_split_of_a_seed_is_written_down() -> None:
    parts = split(12, DataConfig(validation=0.25, test=0.2), seed=3)
    assert [part.tolist() for part in parts] == [[1, 3, 4, 5, 6, 8, 9], [2, 7, 11], [0, 10]]
