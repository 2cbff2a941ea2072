"""Codes on disk: an index of shards, each written whole; what is there and right is used again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import train_prior, train_vqvae
from pipeline.data.code_maps import CodeMaps, load_codes, read_index, read_parts
from pipeline.reporting import Silent
from pipeline.runs.saved import VQVAERun, read_config
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


def codes_of(run: Path) -> list[torch.Tensor]:
    """All codes of the index, in one view after the other."""
    vqvae = read_config(run / "vqvae", VQVAERun)
    maps = read_parts(run / "codes", read_index(run / "codes").identity, vqvae.model, len(vqvae.class_names))
    assert maps is not None
    return [*maps["train"].levels, *maps["train"].views[0], *maps["validation"].levels]


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
    whole = codes_of(run)
    (run / "codes" / "index.json").unlink()
    (run / "codes" / "train-00002.safetensors").unlink()
    encoded.clear()
    learn(run)
    assert encoded == [10]
    assert all(torch.equal(one, other) for one, other in zip(whole, codes_of(run), strict=True))


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
