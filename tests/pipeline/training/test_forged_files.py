"""Files of a run that agree with their manifests and say what cannot be: refused or made anew, and nothing is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import CheckpointError, DataError, UsageError, train_prior
from pipeline.data.codes.maps import load_codes
from pipeline.data.codes.shards import INDEX
from pipeline.storage import load_metadata, load_tensors, read_json, save_tensors, sha256, write_json, write_manifest
from pipeline.training.loop.checkpoint import list_checkpoints
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {"x": torch.zeros(1), **own}, "names x, which the model does not have"),
        (lambda own: {"": torch.zeros(1), **own}, "names , which the model does not have"),
        (lambda own: {**own, min(own): torch.zeros(7, 7)}, r"is \(7, 7\), where the parameter is"),
        (lambda own: {key: own[key] for key in sorted(own)[1:]}, "of a parameter is exp_avg_sq, step; it has to be"),
        (lambda own: {**own, f"{min(own)}x": torch.zeros(())}, "of a parameter is exp_avg, exp_avg_sq, exp_avgx, step"),
    ],
)
def test_an_optimizer_of_another_network_is_refused(
    run: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    stage = run / "prior" / "0"
    for checkpoint in list_checkpoints(stage / "checkpoints"):
        forge(checkpoint / "optimizer.safetensors", change)
    before = sha256(stage / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        train_prior(run, resume="auto", steps=14)
    assert sha256(stage / "model.safetensors") == before


def test_a_stage_1_whose_card_cannot_be_written_trains_no_prior(run: Path) -> None:
    """Once, the prior was trained to its end, and took the place of the one there, before that was found."""
    (run / "vqvae" / "validation.json").write_text("{}")
    write_manifest(run / "vqvae", list(read_json(run / "vqvae" / "manifest.json")))
    before = sha256(run / "prior" / "0" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"validation\.json is not a file of this kind"):
        train_prior(run, resume="auto", steps=14, force=True)
    assert sha256(run / "prior" / "0" / "manifest.json") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {**own, "train": own["train"].float()}, r"these are float32 \(34,\), int64"),
        (lambda own: {**own, "train": own["train"] > 3}, r"these are bool \(34,\), int64"),
        (lambda own: {**own, "train": own["train"][None]}, r"these are int64 \(1, 34\), int64"),
        (lambda own: {**own, "train": own["train"] + 2**40}, "do not hold each image once"),
        (lambda own: {**own, "train": -1 - own["train"]}, "do not hold each image once"),
        (lambda own: {**own, "train": own["validation"].clone()}, "do not hold each image once"),
        (lambda own: {**own, "validation": own["validation"][:0]}, "do not hold each image once"),
        (lambda own: {"train": torch.arange(1), "validation": torch.tensor([1]), "test": own["test"][:0]}, "divides 2"),
    ],
)
def test_parts_that_are_no_division_of_the_images_are_refused(
    run: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    shutil.rmtree(run / "prior")
    forge(run / "vqvae" / "split.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        train_prior(run, images=IMAGES, targets=TARGETS, **{**TINY_PRIOR, "steps": 1})


@pytest.mark.parametrize(("data", "error"), [(" ", UsageError), ("missing", DataError)])
def test_images_that_are_not_there_are_refused_where_codes_are_extracted(
    run: Path, data: str, error: type[Exception]
) -> None:
    shutil.rmtree(run / "codes")
    shutil.rmtree(run / "prior")
    with pytest.raises(error, match=r"--data is empty|no such file or folder"):
        train_prior(run, data=data, **{**TINY_PRIOR, "steps": 1})
