"""Codes on disk: an index of shards, each written whole; what is there and right is used again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import train_prior, train_vqvae
from pipeline.data.codes.maps import CodeMaps, load_codes
from pipeline.data.codes.shards import StoredCodes, read_index, read_parts
from pipeline.reporting import Silent
from pipeline.runs.saved import VQVAERun, read_config
from pipeline.storage import read_json, write_json
from pipeline.training.inputs import extract
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a stage 1 of two levels."""
    train_vqvae(out="run", images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, "levels": 2, "level_kind": "residual"})
    return tmp_path / "run"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were encoded, call by call."""
    counts: list[int] = []
    original = extract.Encoder.maps

    def counting(self: extract.Encoder, indices: np.ndarray, views: list[extract.View]) -> CodeMaps:
        counts.append(len(indices))
        return original(self, indices, views)

    monkeypatch.setattr(extract.Encoder, "maps", counting)
    return counts


def learn(run: Path) -> None:
    """Train a prior for a step, which takes the codes."""
    shutil.rmtree(run / "prior", ignore_errors=True)
    options = {**TINY_PRIOR, "steps": 1, "encodings": 2, "shift": 1}
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **options)


def opened(run: Path) -> dict[str, StoredCodes]:
    """The codes of each part."""
    vqvae = read_config(run / "vqvae", VQVAERun)
    maps = read_parts(run / "codes", read_index(run / "codes").identity, vqvae.model, len(vqvae.class_names))
    assert maps is not None
    return maps


def codes_of(run: Path) -> list[torch.Tensor]:
    """All codes of the index, in one view after the other."""
    maps = opened(run)
    codes: list[torch.Tensor] = []
    for part in maps.values():
        for view in range(part.encodings):
            codes += part.rows(np.arange(len(part)), 2, np.full(len(part), view)).levels
    return codes


def test_many_shards_hold_what_one_does(run: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    learn(run)
    whole, index = codes_of(run), read_index(run / "codes")
    assert {part: [shard.maps for shard in shards] for part, shards in index.parts.items()} == {
        "train": [34],
        "validation": [4],
    }
    (run / "codes").rename(run / "one")
    monkeypatch.setattr(extract, "SHARD_BYTES", 10 * 2 * 12 * 2)  # ten maps of two views of two levels of six codes
    learn(run)
    shards = [shard.maps for shard in read_index(run / "codes").parts["train"]]
    assert shards == [10, 10, 10, 4] and encoded == [34, 4, 10, 10, 10, 4, 4]
    assert all(torch.equal(one, many) for one, many in zip(whole, codes_of(run), strict=True))
    learn(run)
    assert len(encoded) == 7, "extracted once"


def test_an_extraction_that_was_killed_goes_on_with_what_is_missing(
    run: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "SHARD_BYTES", 10 * 2 * 12 * 2)
    learn(run)
    files = {path.name: path.read_bytes() for path in (run / "codes").iterdir()}
    (run / "codes" / "index.json").unlink()
    (run / "codes" / "train-00002.safetensors").unlink()
    encoded.clear()
    learn(run)
    assert encoded == [10]
    assert {path.name: path.read_bytes() for path in (run / "codes").iterdir()} == files


def test_maps_of_shards_are_those_in_memory_and_stay_on_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(run)
    memory = load_codes(run / "codes" / "train-00000.safetensors")
    shutil.rmtree(run / "codes")
    monkeypatch.setattr(extract, "SHARD_BYTES", 10 * 2 * 12 * 2)
    learn(run)
    stored = opened(run)["train"]
    assert len(stored.shards) == 4 and (len(stored), stored.encodings, stored.grids) == (34, 2, memory.grids)
    rng = np.random.default_rng(0)
    for count, levels in ((50, 1), (50, 2), (1, 2), (0, 2)):
        items, encodings = rng.integers(0, 34, count), rng.integers(0, 2, count)
        for which in (None, encodings):
            ours, theirs = stored.rows(items, levels, which), memory.rows(items, levels, which)
            assert len(ours.levels) == levels and ours.labels is not None and theirs.labels is not None
            assert torch.equal(ours.labels, theirs.labels)
            assert all(torch.equal(one, other) for one, other in zip(ours.levels, theirs.levels, strict=True))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "train-00003" in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    address = stored.shards[3].levels[1].data_ptr()
    assert any(start <= address < end for start, end in spans), "a part of the file, and no copy"


def test_the_entropy_of_codes_is_that_of_the_codes_on_disk_whoever_counted_them(run: Path) -> None:
    learn(run)
    for part, maps in opened(run).items():
        for level, codes in enumerate(load_codes(run / "codes" / f"{part}-00000.safetensors").levels):
            frequencies = np.unique(codes.numpy(), return_counts=True)[1] / codes.numel()
            assert maps.unigram_nats[level] == pytest.approx(-(frequencies * np.log(frequencies)).sum())
    counted = opened(run)
    index = read_json(run / "codes" / "index.json")
    older = {name: value for name, value in index.items() if name != "unigram_nats"} | {"format_version": 7}
    write_json(run / "codes" / "index.json", older)
    assert {part: maps.unigram_nats for part, maps in opened(run).items()} == {
        part: maps.unigram_nats for part, maps in counted.items()
    }


@pytest.mark.parametrize("index", [True, False])
def test_a_damaged_shard_is_extracted_anew(run: Path, encoded: list[int], index: bool) -> None:
    """Once, its metadata was enough for it to be used again, and the index was written to agree with it."""
    learn(run)
    whole, path = codes_of(run), run / "codes" / "train-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the data of a tensor, where safetensors itself sees nothing
    path.write_bytes(content)
    load_codes(path)
    if not index:
        (run / "codes" / "index.json").unlink()
    encoded.clear()
    learn(run)
    assert encoded == [34]
    assert all(torch.equal(one, other) for one, other in zip(whole, codes_of(run), strict=True))


def test_codes_of_another_identity_are_moved_aside(run: Path) -> None:
    learn(run)
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, resume="auto", steps=2)
    assert not (run / "codes-old-1").exists()
    shutil.rmtree(run / "prior")
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, reporter=Silent(), **{**TINY_PRIOR, "steps": 1})
    assert (run / "codes-old-1" / "index.json").is_file()
    assert read_index(run / "codes").identity["encodings"] == "1"
