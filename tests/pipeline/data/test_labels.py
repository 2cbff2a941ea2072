"""Classes that are written down beside the images: in a CSV, in JSON, in the members of a WebDataset."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import DataError, train_prior, train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data import loading
from pipeline.data.image_set import ImageSet
from pipeline.data.kept import cache
from pipeline.data.loading import load_images
from tests.tiny import TINY_VQVAE

NAMES = ("a/1.png", "a/2.png", "b/3.png", "b/10.png")
CLASSES = ("old", "new", "new", "old")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, whose folders say nothing of their classes."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def csv_of(path: Path, rows: dict[str, str]) -> str:
    path.write_text(
        "".join(f"{name},x,{label}\n" for name, label in {"file_name": "label", **rows}.items()), "utf-8-sig"
    )
    return str(path)


def read(photos: Path, label_file: str | None = None, **options: object) -> ImageSet:
    (config,) = [DataConfig(data=str(photos), label_file=label_file, **options)]  # type: ignore[arg-type]
    return load_images(config)


def labels(found: ImageSet) -> tuple[str, ...]:
    assert found.labels is not None
    return tuple(found.class_names[label] for label in found.labels)


def test_a_csv_and_both_forms_of_json_say_the_same(tmp_path: Path, photos: Path) -> None:
    rows = dict(zip(NAMES, CLASSES, strict=True))
    listed = [{"label": label, "file_name": name, "width": 8} for name, label in reversed(rows.items())]
    (tmp_path / "object.json").write_text(json.dumps(rows))
    (tmp_path / "list.json").write_text(json.dumps(listed))
    files = (csv_of(tmp_path / "labels.csv", rows), str(tmp_path / "object.json"), str(tmp_path / "list.json"))
    prints = set()
    for file in files:
        found = read(photos, file)
        assert labels(found) == CLASSES and found.class_names == ("new", "old")
        prints |= {found.fingerprint, read(photos, file, memory_gib=0).fingerprint}
    assert len(prints) == 1 and read(photos).fingerprint not in prints


def test_other_classes_are_used_at_once_and_nothing_is_decoded_again(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = csv_of(tmp_path / "labels.csv", dict(zip(NAMES, CLASSES, strict=True)))
    assert labels(read(photos, file, memory_gib=0)) == CLASSES
    monkeypatch.setattr(loading, "decode_into", None)
    csv_of(tmp_path / "labels.csv", dict(zip(NAMES, reversed(CLASSES), strict=True)) | {"a/1.png": "newest"})
    for _ in range(2):
        found = read(photos, file, memory_gib=0)
        assert labels(found) == ("newest", "new", "new", "old")
        assert found.class_names == ("new", "newest", "old")
    assert read(photos, labels=False, memory_gib=0).labels is None
    assert len(cache.entries()) == 1


def test_images_that_are_skipped_take_their_classes_with_them(tmp_path: Path, photos: Path) -> None:
    (photos / "a/2.png").write_text("<html>")
    file = csv_of(tmp_path / "labels.csv", dict(zip(NAMES, CLASSES, strict=True)))
    for gib in (0, 1):
        assert labels(read(photos, file, memory_gib=gib, on_bad_image="skip")) == ("old", "new", "old")


def test_all_that_does_not_fit_is_said_with_both_numbers(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file_name,label\na/1.png,old\na/1.png,new\nc.png,new\nd.png,new\n")
    with pytest.raises(DataError) as caught:
        read(photos, str(path))
    said = str(caught.value)
    assert f"{path} has 4 rows for 3 files, and names more than once 1: a/1.png" in said
    assert f"{path} names 3 files, and {photos} lacks 2: c.png, d.png" in said
    assert f"{photos} holds 4 images, and {path} lacks 3: a/2.png, b/3.png, b/10.png" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.csv", "name,class\na,b\n", "no column file_name and no column label; its header is name, class"),
        ("l.csv", "", "its header is empty"),
        ("l.csv", "file_name,label\na/1.png\n", "1 of 1 rows without a class, such as that of a/1.png"),
        ("l.csv", b"\xff\xfe", "cannot be read"),
        ("l.json", "[1]", "must be"),
        ("l.json", "[]", "must be"),
        ("l.json", "{", "cannot be read"),
        ("l.json", '{"a/1.png": 1.5}', "gives a/1.png the class 1.5"),
        ("l.json", '{"a/1.png": "x", "a/1.png": "y"}', "has 2 rows for 1 files"),
    ],
)
def test_a_file_that_holds_no_classes_is_refused(
    tmp_path: Path, photos: Path, name: str, content: str | bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        read(photos, str(tmp_path / name))


def test_options_that_do_not_fit_are_all_said() -> None:
    with pytest.raises(ValueError, match=r"takes a \.csv or a \.json; got 'l.txt'\n.*--no-labels.*\n.*digits has none"):
        DataConfig(label_file="l.txt", labels=False)


def test_a_run_goes_on_with_its_classes_and_not_with_others(tmp_path: Path, photos: Path) -> None:
    csv_of(tmp_path / "labels.csv", dict(zip(NAMES, CLASSES, strict=True)))
    options = {**TINY_VQVAE, "steps": 1, "data": str(photos)}
    train_vqvae(out="run", label_file="labels.csv", **options)
    assert json.loads(Path("run/vqvae/config.json").read_text())["data"]["label_file"] == str(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").rename(tmp_path / "moved.csv")
    train_vqvae(out="run", label_file="moved.csv", resume="auto", steps=2)
    csv_of(tmp_path / "moved.csv", dict(zip(NAMES, reversed(CLASSES), strict=True)) | {"a/1.png": "new"})
    with pytest.raises(DataError, match="the pixels are the same, their order or their classes are not"):
        train_vqvae(out="run", label_file="moved.csv", resume="auto", steps=3)


def web_dataset(photos: Path, path: Path, beside: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in NAMES:
            archive.add(photos / name, name)
        for name, content in beside.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_the_members_of_a_web_dataset_say_the_classes(tmp_path: Path, photos: Path) -> None:
    numbers = {f"{name[:-4]}.cls": str(index % 2).encode() for index, name in enumerate(NAMES)}
    found = read(web_dataset(photos, tmp_path / "cls.tar", {**numbers, "notes.txt": b""}))
    assert labels(found) == ("0", "1", "0", "1") and found.passed_over == "1 .txt"
    texts = {
        f"{name[:-4]}.json": json.dumps({"label": label}).encode() for name, label in zip(NAMES, CLASSES, strict=True)
    }
    assert labels(read(web_dataset(photos, tmp_path / "json.tar", texts))) == CLASSES
    captions = {f"{name[:-4]}.json": b'{"caption": "a cat"}' for name in NAMES}
    assert labels(read(web_dataset(photos, tmp_path / "captions.tar", captions))) == ("a", "a", "b", "b")


def test_a_web_dataset_with_classes_of_some_images_alone_is_refused(tmp_path: Path, photos: Path) -> None:
    path = web_dataset(photos, tmp_path / "some.tar", {"a/1.cls": b"0", "b/3.cls": b"1"})
    with pytest.raises(
        DataError, match=r"holds 4 images, and 2 have a class in a \.cls beside them: a/2\.png has none"
    ):
        read(path)
    assert read(path, labels=False).labels is None
    with pytest.raises(DataError, match=r"a/1\.json.*cannot be read"):
        read(web_dataset(photos, tmp_path / "damaged.tar", {"a/1.json": b"{"}))


def test_json_that_says_no_class_gives_none_and_an_empty_class_is_refused(tmp_path: Path, photos: Path) -> None:
    boxes = {f"{name[:-4]}.json": b"[[0, 0, 4, 4]]" for name in NAMES}
    assert read(web_dataset(photos, tmp_path / "boxes.tar", boxes)).class_names == ("a", "b"), "by folders"
    empty = {f"{name[:-4]}.cls": b"" if name == NAMES[0] else b"1" for name in NAMES}
    with pytest.raises(DataError, match="the class ''; a class is a whole number, or a text that is not empty"):
        read(web_dataset(photos, tmp_path / "empty.tar", empty))


def test_a_run_is_not_gone_on_with_under_other_names(tmp_path: Path, photos: Path) -> None:
    """The numbers are the same, and so is the fingerprint."""
    file = csv_of(tmp_path / "labels.csv", dict(zip(NAMES, ("cat", "dog", "cat", "dog"), strict=True)))
    options = {**TINY_VQVAE, "batch_size": 2}
    train_vqvae(out=tmp_path / "run", data=str(photos), label_file=file, validation=0.25, **options)
    csv_of(tmp_path / "labels.csv", dict(zip(NAMES, ("cow", "horse", "cow", "horse"), strict=True)))
    with pytest.raises(DataError, match="had other names when it was trained: cat, dog and not cow, horse"):
        train_prior(tmp_path / "run", steps=2, force=True)


def test_a_space_after_a_comma_makes_no_other_class(tmp_path: Path, photos: Path) -> None:
    rows = dict(zip(NAMES, (" old", "new", "new ", "old"), strict=True))
    assert labels(read(photos, csv_of(tmp_path / "labels.csv", rows))) == CLASSES
    with pytest.raises(DataError, match=r"missing\.csv: no such file"):
        read(photos, str(tmp_path / "missing.csv"))
