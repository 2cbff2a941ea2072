"""Images in Parquet files, and in several files by a pattern, are those of a folder; what is damaged is refused."""

import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline import DataError, UsageError, train_prior, train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_images
from pipeline.data.sources.parquet import _BATCHES, _BYTES, _ROWS, _described, _Rows
from pipeline.storage import sha256
from pipeline.training.stage1 import default_folder
from tests.tiny import TINY_PRIOR, TINY_VQVAE

CLASSES = ("cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of two classes, ten of each, in the order of their names."""
    rng = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "photos" / CLASSES[index // 10] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def rows_of(photos: Path) -> list[bytes]:
    return [(photos / CLASSES[index // 10] / f"{index}.png").read_bytes() for index in range(20)]


def table(images: list[Any], labels: list[Any] | None, features: dict[str, Any] | None = None) -> pa.Table:
    """Rows as the hub stores them: a structure of `bytes` and `path`, and integers whose names the schema has."""
    columns: dict[str, Any] = {"image": images} | ({} if labels is None else {"label": labels})
    made = pa.table(columns)
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    )


def hub(images: list[bytes], labels: list[int], names: tuple[str, ...] = CLASSES) -> pa.Table:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return table([{"bytes": image, "path": "x.png"} for image in images], labels, features)


def read(data: Path, **options: object) -> ImageSet:
    (config,) = [DataConfig(data=str(data), **options)]  # type: ignore[arg-type]
    return load_images(config)


@pytest.fixture
def sources(tmp_path: Path, photos: Path) -> dict[str, Path]:
    """The same images in every kind of container, in one file and in several."""
    images, labels = rows_of(photos), [0] * 10 + [1] * 10
    folder = tmp_path / "hub"
    folder.mkdir()
    parquet.write_table(hub(images, labels), tmp_path / "all.parquet", row_group_size=7)
    for part, own in enumerate((slice(0, 8), slice(8, 20))):
        parquet.write_table(hub(images[own], labels[own]), folder / f"train-{part}.parquet", row_group_size=5)
    for name_of, wanted in {"all": range(20), "part-0": range(0, 20, 2), "part-1": range(1, 20, 2)}.items():
        with (
            tarfile.open(tmp_path / f"{name_of}.tar", "w") as tar,
            zipfile.ZipFile(tmp_path / f"{name_of}.zip", "w") as zipped,
        ):
            for index in wanted:
                name = f"{CLASSES[index // 10]}/{index}.png"
                tar.add(photos / name, name)
                zipped.write(photos / name, name)
    made = {"parquet": "all.parquet", "tar": "all.tar", "zip": "all.zip", "several parquets": "hub/train-*.parquet"}
    made |= {"a folder of parquets": "hub", "several tars": "part-*.tar", "several zips": "part-?.zip"}
    return {kind: tmp_path / name for kind, name in made.items()}


def test_the_same_images_are_the_same_in_every_container(photos: Path, sources: dict[str, Path]) -> None:
    expected = read(photos)
    for kind, path in sources.items():
        for gib in (1, 0):
            found = read(path, memory_gib=gib)
            assert found.fingerprint == expected.fingerprint, kind
            assert found.class_names == CLASSES and np.array_equal(found.images, expected.images), kind


def test_the_same_images_have_the_same_codes_in_every_container(photos: Path, sources: dict[str, Path]) -> None:
    train_vqvae(out="run", data=str(photos), **{**TINY_VQVAE, "steps": 2})
    hashes = set()
    for number, path in enumerate((photos, *(sources[kind] for kind in ("parquet", "tar", "zip")))):
        train_prior("run", out=f"other-{number}", data=str(path), force=True, **{**TINY_PRIOR, "steps": 1})
        hashes.add(tuple(sha256(file) for file in sorted(Path(f"other-{number}/codes").glob("*.safetensors"))))
    assert len(hashes) == 1 and len(hashes.pop()) == 2


def test_plain_columns_and_texts_as_classes_are_read_too(tmp_path: Path, photos: Path) -> None:
    images = rows_of(photos)
    parquet.write_table(table(images, ["dog", "cat"] * 10), tmp_path / "plain.parquet")
    found = read(tmp_path / "plain.parquet")
    assert found.class_names == CLASSES and found.labels is not None and found.labels.tolist() == [1, 0] * 10
    parquet.write_table(table(images, [10, 9] * 10), tmp_path / "numbers.parquet")
    assert read(tmp_path / "numbers.parquet").class_names == ("9", "10")
    parquet.write_table(table(images, None), tmp_path / "none.parquet")
    assert read(tmp_path / "none.parquet").labels is None
    parquet.write_table(table(images, None).rename_columns(["anything"]), tmp_path / "other.parquet")
    assert np.array_equal(read(tmp_path / "other.parquet").images, found.images)


def test_any_row_is_read_in_any_order_and_few_are_kept(tmp_path: Path) -> None:
    contents = [f"{index}".encode() for index in range(5000)]
    parquet.write_table(table(contents, None), tmp_path / "many.parquet", row_group_size=2000)
    rows = _Rows([_described(tmp_path / "many.parquet")])
    order = [0, 4999, *np.random.default_rng(0).permutation(5000)[:40].tolist(), *range(1990, 2010), 70, 3]
    for index in order:
        assert rows.image(0, index) == contents[index]
        assert len(rows._kept) <= _BATCHES and all(len(batch) <= _ROWS for batch in rows._kept.values())


def test_large_images_take_little_memory(tmp_path: Path) -> None:
    """Also those that are stored as one value many times, of which the file says that they are small."""
    for name, contents in (("one", [bytes(2**22)] * 40), ("other", [bytes([i]) * 2**22 for i in range(40)])):
        parquet.write_table(table(contents, None), tmp_path / f"{name}.parquet", row_group_size=20)
        rows = _Rows([_described(tmp_path / f"{name}.parquet")])
        for index in (0, 39, 20, 5, 19):
            assert rows.image(0, index) == contents[index]
            kept = [sum(len(image or b"") for image in batch) for batch in rows._kept.values()]
            assert sum(kept) <= _BYTES or len(kept) == 1
    assert len(next(iter(rows._kept.values()))) <= 8, "rows of 4 MiB: not 20 at a time"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda images: pa.table({"text": ["a"]}), "has 0 columns that may be images"),
        (lambda images: pa.table({"a": images, "b": images}), r"has 2 columns that may be images \(a, b\)"),
        (
            lambda images: hub(images, [0] * 19 + [2]),
            "1 of 20 rows .* have no class in label, but 2 in place of 0 to 1",
        ),
        (lambda images: hub(images, [None] * 20), "20 of 20 rows .* but None"),  # type: ignore[list-item]
        (lambda images: table(images, ["a"] * 19 + [None]), "1 of 20 rows"),
        (
            lambda images: table([{"bytes": images[0]}, {"bytes": None, "path": "/etc/passwd"}], None),
            "has no bytes in its row",
        ),
    ],
)
def test_what_a_table_lacks_is_said(tmp_path: Path, photos: Path, made: Any, said: str) -> None:
    parquet.write_table(made(rows_of(photos)), tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "wrong.parquet")


def test_damaged_files_are_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    whole = sources["parquet"].read_bytes()
    (tmp_path / "short.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "holes.parquet").write_bytes(whole[:50] + bytes(400) + whole[450:])
    for name in ("short", "holes"):
        with pytest.raises(DataError, match=f"{name}.parquet"):
            read(tmp_path / f"{name}.parquet")


def test_patterns_that_fit_nothing_or_several_kinds_are_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"no file fits .*x-\*\.tar"):
        read(tmp_path / "x-*.tar")
    with pytest.raises(DataError, match=r"several kinds \(2 \.tar, 2 \.zip\)"):
        read(tmp_path / "part-*")
    shutil.copy(tmp_path / "part-0.tar", tmp_path / "part-2.tar")
    with pytest.raises(DataError, match=r"3 files .* hold 30 images of 20 names: cat/0\.png is in several"):
        read(tmp_path / "part-*.tar")
    assert default_folder({"data": "shards/train-*.tar"}) == Path("runs/train")
    assert default_folder({"data": "shards/*.tar"}) == Path("runs/shards")


def test_without_pyarrow_the_extra_is_named(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'gen-images\[parquet\]'"):
        read(sources["parquet"])
