"""Decoded images on the disk: asked for before they are decoded, decoded once, shortened in place, swept, limited."""

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.config.data import DataConfig
from pipeline.data import loading
from pipeline.data.decoding import decode_into
from pipeline.data.image_set import from_array
from pipeline.data.kept import cache, mapped
from pipeline.data.loading import load_images, load_test_images
from pipeline.errors import ResourceError, UsageError
from pipeline.reporting import Silent
from tests.pipeline.data.test_image_set import folder_of_images

HUGE = "2000000"  # pixels a side: of six images 67 TiB
DECODE = """
import sys
from pipeline.config.data import DataConfig
from pipeline.data import loading

def stop(array, *_):
    array[:] = 1
    print("decoding", flush=True)
    sys.stdin.read()
    return {}

loading.decode_into = stop
loading.load_images(DataConfig(data=sys.argv[1]), shared=True)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of_images(tmp_path / "photos")


def decoded(photos: Path, **options: object) -> np.ndarray:
    """The images of a folder, in the cache."""
    (config,) = [DataConfig(data=str(photos), **options)]  # type: ignore[arg-type]
    return load_images(config, shared=True).images


def unfinished() -> list[Path]:
    return list(cache.decoded_folder().glob(".*"))


@pytest.mark.parametrize("memory_gib", [0.0, 1e12])
def test_images_that_fit_nowhere_are_refused_before_they_are_decoded(photos: Path, memory_gib: float) -> None:
    config = DataConfig(data=str(photos), image_size=HUGE, memory_gib=memory_gib)
    where = "of disk" if memory_gib == 0 else "of memory"
    with pytest.raises(
        ResourceError, match=rf"holding 6 images of 3 x {HUGE} x {HUGE} takes about 65.* TiB {where}.*--image-size"
    ) as caught:
        load_images(config)
    assert caught.value.exit_code == 6
    assert ("GEN_CACHE" if memory_gib == 0 else "--memory-gib") in str(caught.value)
    assert not cache.decoded_folder().exists()
    official = DataConfig(test_data=str(photos), memory_gib=memory_gib)
    with pytest.raises(ResourceError, match=where):
        load_test_images(official, (3, int(HUGE), int(HUGE)))


def test_an_array_that_would_not_fit_is_refused(photos: Path) -> None:
    with pytest.raises(ResourceError, match=r"holding 4 images of 1 x .* of memory.*choose a smaller --image-size"):
        from_array(np.zeros((4, 1, 8, 8), np.uint8), None, (), DataConfig(image_size=HUGE))


def test_the_blocks_of_the_file_are_reserved_before_anything_is_decoded(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a sparse file that is written to on a full disk ends the process with SIGBUS."""
    seen = []

    def reserved(array: np.ndarray, *others: object) -> dict[int, str]:
        (file,) = cache.decoded_folder().glob(".*/images.npy")
        seen.append(file.stat().st_blocks * 512 >= array.nbytes)
        return decode_into(array, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "decode_into", reserved)
    decoded(photos, image_size="512")
    assert seen == [True]


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def test_a_full_disk_is_an_error_that_names_the_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match=r"No space left on device: .*images\.npy") as caught:
        decoded(photos)
    assert caught.value.errno == errno.ENOSPC and not unfinished()


@pytest.mark.parametrize("there", [True, False])
def test_zeros_are_written_where_blocks_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP))
    else:
        monkeypatch.delattr(os, "posix_fallocate")
    array = mapped.lay_out(tmp_path / "a.npy", (5, 3, 1000, 1001))
    assert array.shape == (5, 3, 1000, 1001) and not array.any()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes


def test_skipped_images_leave_a_file_of_the_others_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        (photos / "grün" / f"broken {index}.png").touch()
    sizes = []
    shorten = mapped.shorten

    def watched(path: Path, n: int) -> None:
        sizes.append({file.name: file.stat().st_size for file in path.parent.iterdir()})
        shorten(path, n)

    monkeypatch.setattr(mapped, "shorten", watched)
    images = decoded(photos, on_bad_image="skip")
    assert images.shape == (6, 3, 8, 8)
    (folder,) = cache.decoded_folder().iterdir()
    assert (folder / "images.npy").stat().st_size < 6 * 3 * 64 + 200
    assert [list(files) for files in sizes] == [["images.npy"]], "nothing lay beside it"
    np.testing.assert_array_equal(np.load(folder / "images.npy"), images)
    np.testing.assert_array_equal(images, load_images(DataConfig(data=str(photos), on_bad_image="skip")).images)


@pytest.fixture
def decoder(photos: Path) -> subprocess.Popen[str]:
    """Another process that has begun to decode these images, and goes on once its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", DECODE, str(photos)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "decoding\n"
    return process


class Noted(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_second_command_waits_for_the_first_and_decodes_nothing(photos: Path, decoder: subprocess.Popen[str]) -> None:
    noted, results = Noted(), []
    config = DataConfig(data=str(photos))
    second = threading.Thread(target=lambda: results.append(load_images(config, shared=True, reporter=noted)))
    second.start()
    while not noted.lines:
        time.sleep(0.01)
    assert noted.lines == ["another command is decoding or downloading the same images; waiting for it"]
    decoder.communicate("")
    second.join()
    assert (results[0].images == 1).all(), "what the first one decoded"
    assert len(list(cache.decoded_folder().iterdir())) == 1


def test_what_killed_decodings_left_is_removed_by_the_next_one(
    tmp_path: Path, photos: Path, decoder: subprocess.Popen[str]
) -> None:
    others = folder_of_images(tmp_path / "others", size=(9, 9))
    (running,) = unfinished()
    orphan = cache.decoded_folder() / f".{'0' * 32}.abc"
    orphan.mkdir()
    (orphan / "images.npy").touch()
    decoded(others)
    assert unfinished() == [running], "it is being written, and the other one is not"
    decoder.kill()
    decoder.communicate()
    decoded(photos)
    assert unfinished() == []


def test_the_least_recently_used_sets_give_way_to_the_limit(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (100, 101, 102, 100):
        decoded(photos, image_size=str(size))
        time.sleep(0.02)  # file systems tell times apart by a few milliseconds
    assert [entry.shape[2] for entry in cache.entries()] == [101, 102, 100]
    assert all(entry.data == str(photos) for entry in cache.entries())
    size = sum(entry.size for entry in cache.entries())
    monkeypatch.setenv("GEN_CACHE_GIB", str(size / 2**30))
    held = decoded(photos, image_size="101")
    time.sleep(0.02)
    decoded(photos, image_size="100")
    time.sleep(0.02)
    decoded(photos, image_size="50")
    assert [entry.shape[2] for entry in cache.entries()] == [101, 100, 50], "102 was the oldest"
    decoded(photos, image_size="99")
    assert [entry.shape[2] for entry in cache.entries()] == [101, 50, 99], "101 is older, and in use"
    assert held.any()


def test_a_set_larger_than_the_limit_is_refused_and_nothing_removed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded(photos)
    monkeypatch.setenv("GEN_CACHE_GIB", "0.0001")
    with pytest.raises(ResourceError, match=r"takes 175.* KiB of the cache, and GEN_CACHE_GIB allows 104.* KiB"):
        decoded(photos, image_size="100")
    assert len(cache.entries()) == 1
    monkeypatch.setenv("GEN_CACHE_GIB", "much")
    with pytest.raises(UsageError, match="GEN_CACHE_GIB is 'much'; set it to a number of GiB"):
        decoded(photos, image_size="100")


def gen(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_lists_what_is_kept_and_clears_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0 data sets, 0 bytes; no limit; GEN_CACHE_GIB sets one" in gen("cache")
    decoded(photos)
    monkeypatch.setenv("GEN_CACHE_GIB", "3")
    (cache.cache_folder() / "torchvision" / "MNIST" / "raw").mkdir(parents=True)
    (cache.cache_folder() / "torchvision" / "MNIST" / "raw" / "train").write_bytes(bytes(2048))
    listed = gen("cache")
    assert re.search(rf"{photos} +6 images of 3 x 8 x 8, [\d.]+ KiB, last used {datetime.now():%Y}-", listed)
    assert re.search(r"(?s)1 data set, .*; at most 3.0 GiB.*MNIST +2.0 KiB", listed)
    assert re.match(r"removed [\d.]+ KiB from .*cache$", gen("cache", "--clear"))
    assert "0 data sets" in gen("cache") and "MNIST" not in gen("cache")


def test_opening_a_set_again_is_its_last_use(photos: Path) -> None:
    decoded(photos)
    (entry,) = cache.entries()
    os.utime(entry.folder, (0, 0))
    assert cache.entries()[0].used.year == 1970
    decoded(photos)
    assert cache.entries()[0].used >= entry.used


def test_without_locks_sets_are_used_and_not_removed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded(photos)
    monkeypatch.setattr("fcntl.flock", refuse(errno.ENOSYS))
    (entry,) = cache.entries()
    assert mapped.open_held(entry.folder / cache.IMAGES).shape == (6, 3, 8, 8)
    assert mapped.is_held(entry.folder / cache.IMAGES)


def test_only_what_nobody_uses_is_cleared(photos: Path) -> None:
    held = decoded(photos)
    decoded(photos, image_size="4")
    (cache.cache_folder() / "torchvision").mkdir()
    (cache.cache_folder() / "torchvision" / "MNIST").write_bytes(b"x" * 100)
    theirs = cache.cache_folder() / "torchvision" / "my-own-model.pth"  # where GEN_CACHE names a folder of many things
    theirs.write_bytes(b"x")
    removed, left = cache.clear()
    assert removed > 100 and left > held.nbytes
    assert [entry.shape for entry in cache.entries()] == [held.shape]
    assert not (cache.cache_folder() / "torchvision" / "MNIST").exists() and theirs.exists()
    del held
    cache.clear()
    assert cache.entries() == []


@pytest.mark.parametrize("name", ["images.npy", "images.json", "facts.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\x93NUMPY\x01\x00"])
def test_a_damaged_set_is_listed_and_decoded_anew(photos: Path, name: str, content: bytes | None) -> None:
    before = np.array(decoded(photos))
    (entry,) = cache.entries()
    if content is None:
        (entry.folder / name).unlink()
    else:
        (entry.folder / name).write_bytes(content)
    assert len(cache.entries()) == int(content is not None or name == cache.FACTS)
    assert np.array_equal(decoded(photos), before)
    assert [found.shape for found in cache.entries()] == [before.shape]
