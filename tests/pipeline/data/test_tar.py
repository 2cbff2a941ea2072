"""Images in a .tar are those of the folder that it was made of; hostile ones are refused in our own words."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.data import DataConfig
from pipeline.data.loading import load_images
from pipeline.data.sources.opening import open_source
from pipeline.errors import DataError


def _folder(root: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        file = root / "images" / ("cat", "dog")[index % 2] / f"{index + 7}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (root / "images/cat/.hidden.png").write_bytes(b"no image")
    (root / "images/notes.txt").write_text("no image")
    return root / "images"


def _tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


def test_a_tar_holds_the_images_of_its_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    expected, found = (load_images(DataConfig(data=str(p))) for p in (folder, _tar(folder, tmp_path / "images.tar")))
    assert found.fingerprint == expected.fingerprint
    assert (found.names, found.class_names) == (expected.names, expected.class_names)
    assert found.passed_over == expected.passed_over == "1 .txt"
    assert np.array_equal(found.images, expected.images)


@pytest.mark.parametrize("at", [700, 3000])
def test_a_tar_cut_short_or_overwritten_is_refused(tmp_path: Path, at: int) -> None:
    whole = _tar(_folder(tmp_path), tmp_path / "images.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(whole[:at])
    start = at // 512 * 512
    with tarfile.open(tmp_path / "images.tar") as archive:
        header = next(info.offset for info in archive if info.offset >= start)
    (tmp_path / "damaged.tar").write_bytes(whole[:header] + b"\xff" * 512 + whole[header + 512 :])
    for name in ("short.tar", "damaged.tar"):
        with pytest.raises(DataError, match=name):
            open_source(tmp_path / name, 2**20)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("/etc/1.png", tarfile.REGTYPE, "leads out"),
        ("a/../../1.png", tarfile.REGTYPE, "leads out"),
        ("1.png", tarfile.CHRTYPE, "device"),
        ("1.png", tarfile.SYMTYPE, "link"),
    ],
)
def test_members_that_are_no_ordinary_files_are_refused(tmp_path: Path, name: str, kind: bytes, said: str) -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    with tarfile.open(tmp_path / "hostile.tar", "w") as archive:
        archive.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "hostile.tar", 2**20)


def test_a_size_beyond_the_end_and_a_compressed_tar_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.png")
    info.size = 2**40
    (tmp_path / "lies.tar").write_bytes(info.tobuf() + bytes(1024))
    (tmp_path / "images.tar.gz").write_bytes(b"\x1f\x8b")
    for name, said in (("lies.tar", "no readable"), ("images.tar.gz", "decompress")):
        with pytest.raises(DataError, match=said):
            open_source(tmp_path / name, 2**20)
