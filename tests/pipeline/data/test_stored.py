"""What is noted beside decoded images: a start or a resume reads no pixels for it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data.image_set import ImageSet, Names
from pipeline.data.kept import cache
from pipeline.data.loading import load_images
from pipeline.data.record import hashes
from pipeline.data.splits import pixel_variance
from pipeline.storage import load_tensors
from tests.tiny import TINY_VQVAE


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of two classes, in two sizes of names."""
    rng = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "photos" / ("even", "odd")[index % 2] / f"{index}ü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def read(photos: Path, **options: object) -> ImageSet:
    (config,) = [DataConfig(data=str(photos), **options)]  # type: ignore[arg-type]
    return load_images(config)


def the_entry() -> Path:
    (entry,) = cache.entries()
    return entry.folder


def without_pixels(folder: Path) -> None:
    """Make the pixels of a decoded set zeros: whoever reads them finds others than those that were decoded."""
    array = np.load(folder / cache.IMAGES, mmap_mode="r+")
    array[:] = 0
    array.flush()


def test_all_that_is_known_of_a_set_is_what_its_pixels_say_in_memory_too(photos: Path) -> None:
    memory, chosen = read(photos), np.arange(3, 17)
    for _ in ("decoded", "opened again"):
        kept = read(photos, memory_gib=0)
        assert isinstance(kept.decoded, np.memmap)
        assert all(map(np.array_equal, kept.facts, memory.facts)) and kept.fingerprint == memory.fingerprint
        assert tuple(kept.names) == memory.names and kept.class_names == memory.class_names
        assert kept.labels is not None and memory.labels is not None
        assert np.array_equal(kept.labels, memory.labels)
        assert pixel_variance(kept, chosen) == pixel_variance(memory, chosen)
        without_pixels(the_entry())


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_a_set_is_opened_and_none_of_its_pixels_read(photos: Path, crop: str) -> None:
    options = {"image_size": "8", "crop": crop, "memory_gib": 0}
    before = read(photos, **options)
    variance, own = pixel_variance(before, np.arange(12)), hashes(before)
    without_pixels(the_entry())
    after = read(photos, **options)
    assert not after.images.any()
    assert after.fingerprint == before.fingerprint and pixel_variance(after, np.arange(12)) == variance
    assert all(map(np.array_equal, hashes(after), own))


def test_a_training_begins_and_goes_on_and_reads_no_pixels_but_those_it_trains_on(photos: Path) -> None:
    """Once each start and each resume read all pixels twice, for the variance and for the hashes."""
    options = {**TINY_VQVAE, "steps": 1, "data": str(photos), "memory_gib": 0}
    train_vqvae(out="before", **options)
    without_pixels(the_entry())
    train_vqvae(out="after", **options)
    models = [load_tensors(Path(run, "vqvae/model.safetensors")) for run in ("before", "after")]
    assert models[0]["data_variance"] == models[1]["data_variance"] > 0
    noted = [Path(run, "vqvae/images.safetensors").read_bytes() for run in ("before", "after")]
    assert noted[0] == noted[1]
    train_vqvae(out="before", resume="auto", steps=2)
    assert Path("before/vqvae/images.safetensors").read_bytes() == noted[0]


def as_older_versions_wrote(folder: Path, found: ImageSet) -> None:
    """Leave in a folder of the cache what versions without facts had there."""
    for path in (*folder.glob("labels-*"), folder / cache.FACTS):
        path.unlink()
    assert found.labels is not None
    np.save(folder / "labels.npy", found.labels)
    about = {"data": "photos", "class_names": found.class_names, "fingerprint": found.fingerprint, "skipped": []}
    (folder / cache.ABOUT).write_text(json.dumps({**about, "names": list(found.names)}))


def test_a_set_of_an_older_version_is_completed_once(photos: Path) -> None:
    before = read(photos, memory_gib=0)
    folder = the_entry()
    as_older_versions_wrote(folder, before)
    decoded_at = (folder / cache.IMAGES).stat().st_mtime_ns
    for _ in ("completed", "opened"):
        after = read(photos, memory_gib=0)
        assert after.fingerprint == before.fingerprint and tuple(after.names) == tuple(before.names)
        assert all(map(np.array_equal, after.facts, before.facts)) and after.class_names == ("even", "odd")
        assert (folder / cache.IMAGES).stat().st_mtime_ns == decoded_at
        without_pixels(folder)
        decoded_at = (folder / cache.IMAGES).stat().st_mtime_ns


def test_facts_are_sums_of_the_window_and_hashes_of_all_pixels(photos: Path) -> None:
    found = read(photos, image_size="8", crop="random")
    window = found.images.astype(np.int64)
    assert np.array_equal(found.facts.sums, window.sum((1, 2, 3)))
    assert np.array_equal(found.facts.squares, (window**2).sum((1, 2, 3)))
    digests = b"".join(hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in found.decoded)
    assert found.facts.hashes.tobytes() == digests and found.decoded.shape[2] == 9


def test_names_are_a_sequence_of_texts() -> None:
    names = ("a.png", "", "grün/ü.png", "z")
    kept = Names.of(names)
    assert tuple(kept) == names and kept[-1] == "z" and tuple(kept[1:3]) == names[1:3] and len(Names.of(())) == 0
    with pytest.raises(IndexError):
        kept[4]
