"""Files of a run that agree with their manifests and say what cannot be: refused or made anew, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import train_prior
from pipeline.data.code_maps import INDEX, load_codes
from pipeline.storage import load_metadata, load_tensors, read_json, save_tensors, sha256, write_json, write_manifest
from tests.tiny import TINY_PRIOR, shapes

IMAGES, TARGETS = shapes()


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def forge(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file, and let a manifest or an index beside it say that it is right."""
    save_tensors(path, change(load_tensors(path)), load_metadata(path))
    if (path.parent / INDEX).exists():
        index = json.loads((path.parent / INDEX).read_text())
        for shard in (shard for part in index["parts"].values() for shard in part):
            shard["sha256"] = sha256(path.parent / shard["file"])
        write_json(path.parent / INDEX, index)
    else:
        write_manifest(path.parent, list(read_json(path.parent / "manifest.json")))


@pytest.mark.parametrize(
    "change",
    [
        lambda own: {**own, "level0": own["level0"].float()},
        lambda own: {**own, "level0": own["level0"].flip(1)[:, :1]},
        lambda own: {**own, "level0": own["level0"] + 100},
        lambda own: {**own, "level0": -1 - own["level0"]},
        lambda own: {**own, "level0": own["level0"][:0]},
        lambda own: {**own, "level0": own["level0"][None]},
        lambda own: {**own, "labels": own["labels"][:1]},
        lambda own: {**own, "labels": own["labels"] + 7},
        lambda own: {**own, "labels": own["labels"].to(torch.uint8)},
        lambda own: {**own, "labels": own["labels"][:, None]},
        lambda own: {"level0": own["level0"]},
        lambda own: {**own, "view1.level0": own["level0"].float()},
    ],
)
@pytest.mark.parametrize("part", ["train", "validation"])
def test_code_maps_that_stage_1_cannot_have_made_are_extracted_anew(
    run: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    shutil.rmtree(run / "prior")
    path = run / "codes" / f"{part}-00000.safetensors"
    before = load_codes(path)
    forge(path, change)
    train_prior(run, images=IMAGES, targets=TARGETS, **{**TINY_PRIOR, "steps": 1})
    assert torch.equal(load_codes(path).levels[0], before.levels[0])


def test_a_part_that_an_index_leaves_out_is_extracted_anew(run: Path) -> None:
    shutil.rmtree(run / "prior")
    index = read_json(run / "codes" / INDEX)
    write_json(run / "codes" / INDEX, {**index, "parts": {"train": []}})
    train_prior(run, images=IMAGES, targets=TARGETS, **{**TINY_PRIOR, "steps": 1})
    assert set(read_json(run / "codes" / INDEX)["parts"]) == {"train", "validation"}  # type: ignore[call-overload]
