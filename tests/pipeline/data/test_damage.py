"""Damaged and hostile files: each ends in an image or is named as bad, in silence, within bounds."""

import io
import logging
import os
import random
import socket
import struct
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import DataError
from pipeline.cli.inputs import images_like
from pipeline.config.data import DataConfig
from pipeline.data import decoding, pixels
from pipeline.data.decoding import Plan, decode_into
from pipeline.data.loading import load_images, test_files_fingerprint
from pipeline.data.pixels import BadImageError, channels, decoders, open_image
from pipeline.data.sources.base import SUFFIXES, Source
from pipeline.data.sources.opening import open_source
from pipeline.runs.saved import VQVAERun, read_config

fingerprint_of_files = test_files_fingerprint  # pytest would take it for a test
del test_files_fingerprint

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 32))
TIFFS = ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "group4")


def encoded(kind: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(compression: str) -> bytes:
    return encoded("TIFF", PICTURE.convert("1") if compression == "group4" else PICTURE, compression=compression)


def whole_files() -> dict[str, bytes]:
    """An image of every suffix, TIFFs in several compressions, and one turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = Image.registered_extensions()
    plain = {suffix: encoded(kinds[suffix]) for suffix in sorted(SUFFIXES)}
    turned = {f"{kind}-exif": encoded(kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    return plain | turned | {compression: tiff(compression) for compression in TIFFS}


def with_changed_tag(data: bytes, rng: random.Random) -> bytes:
    """A TIFF in whose first directory a type, a number of values, or a value is another."""
    changed = bytearray(data)
    start = struct.unpack_from("<I", data, 4)[0]
    entry = start + 2 + 12 * rng.randrange(struct.unpack_from("<H", data, start)[0])
    if rng.random() < 0.5:
        struct.pack_into("<H", changed, entry + 2, rng.randrange(19))
    else:
        struct.pack_into("<I", changed, entry + rng.choice([4, 8]), rng.choice([0, 1, 2, 100, 2**31, 2**32 - 1]))
    return bytes(changed)


def with_changed_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


def damaged_files(each: int) -> Iterator[bytes]:
    rng = random.Random(0)  # noqa: S311 - the same files every time
    for data in whole_files().values():
        for _ in range(each):
            yield with_changed_bytes(data, rng)
            if data[:4] == b"II*\0":
                yield with_changed_tag(data, rng)


def test_every_damaged_file_is_an_image_or_a_bad_one_in_silence(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's: without any, warnings and errors are printed
    outcomes = {"image": 0, "bad": 0}
    with decoders(10**6):
        for data in damaged_files(each=60):
            try:
                assert open_image(data).mode in ("L", "RGB")
                outcomes["image"] += 1
            except BadImageError as error:
                assert str(error) and "\n" not in str(error)
                outcomes["bad"] += 1
    assert min(outcomes.values()) > 200
    assert capfd.readouterr() == ("", "")


def test_a_damaged_tiff_is_skipped_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once these two ended the decoding, with a TypeError and an OverflowError, and the others printed raw lines."""
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's: without any, warnings and errors are printed
    rng = random.Random(1)  # noqa: S311 - the same files every time
    (tmp_path / "whole.tif").write_bytes(tiff("raw"))
    whole = tiff("raw")
    changes = {"type": (273, 2, 1, 0), "offset": (273, 16, 1, len(whole)), "samples": (277, 3, 1, 99)}
    for name, (tag, *changed) in changes.items():  # of the first strip, and of a pixel
        data = bytearray(whole + b"\xff" * 8)
        entry = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
        struct.pack_into("<HII", data, entry + 2, *changed)
        (tmp_path / f"{name}.tif").write_bytes(data)
    for compression in TIFFS:
        for index in range(20):
            (tmp_path / f"{compression} {index}.tif").write_bytes(with_changed_bytes(tiff(compression), rng))
    images = load_images(DataConfig(data=str(tmp_path), on_bad_image="skip", image_size="8"))
    assert len(images.skipped) > 10 and "whole.tif" in images.names
    assert {f"{name}.tif" for name in changes} <= {line.partition(":")[0] for line in images.skipped}
    assert capfd.readouterr() == ("", "")


def test_a_full_memory_makes_no_bad_image_and_ctrl_c_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, whole images were called unreadable, and left out, where the memory was full for a moment."""
    failures = iter([True, True, False, False, *[True] * 20])
    as_seen = pixels._as_seen

    def without_memory(image: Image.Image) -> Image.Image:
        if next(failures):
            raise MemoryError
        return as_seen(image)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "_as_seen", without_memory)
    with pytest.raises(MemoryError):
        open_image(encoded("PNG"))
    (tmp_path / "one.png").write_bytes(encoded("PNG"))
    plan = Plan("colour", 32, 40, size_asked=True, colour_asked=True)
    array = np.zeros((1, channels(plan.colour), plan.height, plan.width), np.uint8)
    assert decode_into(array, open_source(tmp_path, 2**20), plan, None) == {} and array.any()
    next(failures)
    assert decode_into(array, open_source(tmp_path, 2**20), plan, None) == {0: "takes more memory than is free"}
    monkeypatch.setattr(pixels, "_as_seen", stopped)
    with pytest.raises(KeyboardInterrupt):
        open_image(encoded("PNG"))


def test_the_settings_of_pillow_are_set_back() -> None:
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(BadImageError), decoders(7):
        open_image(encoded("PNG"))
    assert before == Image.MAX_IMAGE_PIXELS and filters == list(warnings.filters)


class CountingPool(ThreadPoolExecutor):
    """Counts what is submitted and not finished."""

    unfinished, most = 0, 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        CountingPool.unfinished += 1
        CountingPool.most = max(CountingPool.most, CountingPool.unfinished)
        future: Future[Any] = super().submit(*arguments, **named)
        future.add_done_callback(lambda _: setattr(CountingPool, "unfinished", CountingPool.unfinished - 1))
        return future


def test_few_of_very_many_images_are_waiting_to_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", CountingPool)
    data = encoded("PNG", Image.new("L", (1, 1), 7))
    names = tuple(map(str, range(2000)))
    source = Source(names, lambda name: io.BytesIO(b"" if name == "1321" else data), lambda _: 1, "", 1000)
    array = np.zeros((2000, 1, 1, 1), np.uint8)
    bad = decoding.decode_into(array, source, decoding.Plan("grey", 1, 1, True, True), None)
    assert bad == {1321: "empty file"} and (np.delete(array, 1321, axis=0) == 7).all()
    assert 0 < CountingPool.most <= 4 * (os.cpu_count() or 1)


@pytest.mark.parametrize("special", ["/dev/zero", "pipe.png", "socket"])
def test_what_never_ends_or_never_begins_is_refused(tmp_path: Path, special: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(DataError, match=rf"{special} is a device, a pipe or a socket; name a folder"):
            load_images(DataConfig(data=special))
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    assert load_images(DataConfig(data=str(tmp_path))).names == ("a.png",)


def bomb(path: Path, size: int, compression: int) -> Path:
    """A .zip of an image, and of a member of this many zeros."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("small.png", encoded("PNG"))
        file.writestr("bomb.png", bytes(size))
    return path


LIMIT = DataConfig(max_pixels=2000).max_bytes


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("honest", [True, False])
def test_a_zip_bomb_is_refused_by_name_and_not_unfolded(tmp_path: Path, compression: int, honest: bool) -> None:
    path = bomb(tmp_path / "data.zip", 2**23, compression)
    if not honest:  # the sizes in both headers are made smaller
        path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**23), struct.pack("<I", LIMIT)))
    config = DataConfig(data=str(path), on_bad_image="skip", max_pixels=2000)
    images = load_images(config)
    assert images.names == ("small.png",)
    reason = (
        f"has {2**23:,} bytes or more ({LIMIT:,} at most; a training takes more with --max-pixels)"
        if honest
        else "Bad CRC"
    )
    assert f"bomb.png: {reason}" in images.skipped[0]


def test_a_member_that_is_too_large_is_not_opened() -> None:
    def opened(_: str) -> io.BytesIO:
        raise AssertionError

    with pytest.raises(BadImageError, match="has 11 bytes or more"):
        Source(("a",), opened, lambda _: 11, "", largest=10).read("a")
    grown = Source(("a",), lambda _: io.BytesIO(bytes(2**20)), lambda _: 1, "", largest=10)
    with pytest.raises(BadImageError, match=r"bytes or more \(10 at most"):
        grown.read("a")


def test_a_huge_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(DataError, match=r"(?s)1 of 2 images.*huge\.png: has 68,719,476,736 bytes or more"):
        load_images(DataConfig(data=str(tmp_path)))


def test_an_image_of_more_pixels_than_pillow_allows_is_taken_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_images(DataConfig(data=str(tmp_path))).shape == (3, 32, 40)


def test_commands_about_a_run_take_images_as_large_as_its_training_did(tmp_path: Path, trained: Path) -> None:
    config = read_config(trained / "vqvae", VQVAERun)
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    assert images_like(config, str(tmp_path)).shape == (1, 8, 12)
    with pytest.raises(DataError, match="too many pixels"):
        images_like(replace(config, data=replace(config.data, max_pixels=9)), str(tmp_path))


def test_damage_in_an_official_test_part_is_named(tmp_path: Path) -> None:
    path = bomb(tmp_path / "data.zip", 1000, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(bytes(1000), bytes(999) + b"x", 1))
    with pytest.raises(DataError, match=r"bomb\.png in .*data\.zip cannot be read \(Bad CRC"):
        fingerprint_of_files(str(path))


def test_names_that_are_not_utf8_are_written_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in (b"gr\xfcn", b"blau"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + folder))
        path.mkdir(parents=True)
        (path / "1.png").write_bytes(encoded("PNG"))
    for shared in (False, True):
        images = load_images(DataConfig(data=str(root)), shared=shared)
        assert images.class_names == ("blau", r"gr\xfcn") and tuple(images.names) == ("blau/1.png", r"gr\xfcn/1.png")
    assert len(fingerprint_of_files(str(root))) == 64
    (root / r"gr\xfcn").mkdir()
    (root / r"gr\xfcn" / "2.png").write_bytes(encoded("PNG"))
    with pytest.raises(DataError, match=r"two files or folders would both be called gr\\xfcn; rename"):
        open_source(root, 1)
