"""Training a prior without an expert: early stop, presets by the size of the data, several encodings an image."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import UsageError, load, train_prior, train_vqvae
from pipeline.config.presets import preset_for
from pipeline.config.training import AugmentConfig, TrainingConfig, evaluations_since
from pipeline.data.codes.maps import CodeMaps, load_codes
from pipeline.randomness import batch_indices, views
from pipeline.reporting import Silent
from pipeline.storage import load_tensors
from pipeline.training.inputs.batches import CodeBatches
from pipeline.training.inputs.extract import View, views_of
from pipeline.training.loop.checkpoint import list_checkpoints
from tests.pipeline.training.test_training import PowerCutError, assert_same_files, interrupting, last_checkpoint
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()
OVERFIT: dict[str, Any] = {
    "dropout": 0.0,
    "code_dropout": 0.0,
    "learning_rate": 0.02,
    "average_decay": 0.0,
    "steps": 200,
    "evaluations": 20,
    "patience": 2,
    "checkpoints": 5,
}


class Listening(Silent):
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def prior(run: Path, **options: Any) -> Path:
    done = train_prior(run, images=IMAGES, targets=TARGETS, force=True, **{**TINY_PRIOR, **options})
    return done.run / "prior" / "0"


def test_evaluations_are_counted_from_the_best_one() -> None:
    config = TrainingConfig(steps=100, evaluations=10)
    assert [evaluations_since(config, 30, step, 100) for step in (30, 39, 40, 60)] == [0, 0, 1, 3]


def test_an_overfit_prior_stops_early_and_keeps_the_best(tmp_path: Path, trained: Path) -> None:
    listening = Listening()
    stage = prior(trained, out=tmp_path / "run", **OVERFIT, reporter=listening)
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    nats = {line["step"]: line["validation_nats"] for line in lines if "validation_nats" in line}
    best = min(nats, key=lambda step: nats[step])
    assert max(nats) == best + 20 < 200, "two evaluations, ten steps apart, without a better one"
    assert json.loads((stage / "validation.json").read_text())["step"] == best
    assert any(f"stopped early after step {best + 20} of 200" in text for text in listening.said)
    assert last_checkpoint(stage).name == f"step-{best + 20:09d}"
    assert load(tmp_path / "run").priors
    logged = [(run / "vqvae" / "metrics.jsonl").read_bytes() for run in (trained, tmp_path / "run")]
    assert logged[0] == logged[1], "stage 1 is copied with what it logged"


def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path: Path, trained: Path) -> None:
    options = {**OVERFIT, "steps": 100}
    stage = prior(trained, out=tmp_path / "run", **options)
    ended = int(last_checkpoint(stage).name[5:])
    weights = (stage / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=rf"stopped early, after {ended} of 100 steps; .* pass --patience 0"):
        prior(tmp_path / "run", **options, resume="auto")
    assert (stage / "model.safetensors").read_bytes() == weights
    prior(tmp_path / "run", **{**options, "patience": 0}, resume="auto")
    assert last_checkpoint(stage).name == "step-000000100"
    assert json.loads((stage / "config.json").read_text())["training"]["patience"] == 0


def test_without_patience_it_goes_on(tmp_path: Path, trained: Path) -> None:
    listening = Listening()
    stage = prior(trained, out=tmp_path / "run", **{**OVERFIT, "patience": 0, "steps": 100}, reporter=listening)
    assert last_checkpoint(stage).name == "step-000000100"
    assert not any("stopped early" in text for text in listening.said)


def test_a_resumed_run_stops_early_where_the_whole_one_does(tmp_path: Path, trained: Path) -> None:
    options = {**OVERFIT, "checkpoints": 200, "keep": 300}
    whole = prior(trained, out=tmp_path / "whole", **options)
    end = int(last_checkpoint(whole).name[5:])
    with pytest.raises(PowerCutError):
        prior(trained, out=tmp_path / "parts", **options, reporter=interrupting(end - 13))
    parts = prior(tmp_path / "parts", **options, resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert len(list_checkpoints(parts / "checkpoints")) == end


@pytest.mark.parametrize("kind", ["pixelcnn", "pixelsnail", "transformer"])
def test_every_prior_beneath_a_level_and_over_several_encodings_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    options = {"prior": kind, "encodings": 3, "shift": 2, "dropout": 0.5, "checkpoints": 12, "keep": 20, "level": 1}
    options |= {"micro_batches": 2, "average_decay": 0.9}
    stage1 = {**TINY_VQVAE, "levels": 2, "level_kind": "residual", "flip": True}
    train_vqvae(out=tmp_path / "whole", images=IMAGES, targets=TARGETS, **stage1)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    prior(tmp_path / "whole", **options)
    with pytest.raises(PowerCutError):
        prior(tmp_path / "parts", **options, reporter=interrupting(7))
    prior(tmp_path / "parts", **options, resume="auto")
    whole, parts = (tmp_path / name / "prior" / "1" for name in ("whole", "parts"))
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert_same_files(whole, parts)


def test_the_preset_follows_the_size_of_the_data(trained: Path, tmp_path: Path) -> None:
    assert [preset_for(images) for images in (100, 4_999, 5_000, 10**7)] == ["small", "small", "base", "base"]
    listening = Listening()
    train_prior(trained, out=tmp_path / "run", images=IMAGES, targets=TARGETS, steps=1, reporter=listening)
    config = json.loads((tmp_path / "run" / "prior" / "0" / "config.json").read_text())
    assert config["model"]["hidden"] == 64 and config["model"]["dropout"] == 0.5
    assert "preset small, for 34 images" in listening.said


def test_views_are_the_image_itself_then_moved_and_mirrored_ones() -> None:
    assert views_of(AugmentConfig(), False) == [View(0, 0, False)]
    assert views_of(AugmentConfig(), True) == [View(0, 0, False), View(0, 0, True)]
    assert len(views_of(AugmentConfig(encodings=3, shift=2), True)) == 6
    images, indices = IMAGES[:9], np.array([7, 2, 5])
    assert np.array_equal(View(0, 2, False).of(images, indices), images[indices])
    assert np.array_equal(View(0, 2, True).of(images, indices), images[indices][..., ::-1])
    moved = View(1, 2, False).of(images, indices)
    padded = np.pad(images[indices], ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    for image, source in zip(moved, padded, strict=True):
        windows = [source[:, y : y + 8, x : x + 12] for y in range(5) for x in range(5)]
        assert any(np.array_equal(image, window) for window in windows)
    assert np.array_equal(View(1, 2, False).of(images, indices[1:]), moved[1:]), "a matter of the image alone"
    assert not np.array_equal(View(2, 2, False).of(images, indices), moved)


@pytest.mark.parametrize("options", [{"encodings": 2}, {"shift": 1}])
def test_encodings_and_shift_go_together(trained: Path, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"--encodings . and --shift . go together"):
        prior(trained, out=tmp_path / "run", **options)


def test_all_encodings_are_on_disk_and_belong_to_the_images(trained: Path, tmp_path: Path) -> None:
    run = prior(trained, out=tmp_path / "run", encodings=3, shift=2).parent.parent
    maps, model = load_codes(run / "codes" / "train-00000.safetensors"), load(run)
    train = load_tensors(run / "vqvae" / "split.safetensors")["train"].numpy()
    assert len(maps.views) == 2 and not load_codes(run / "codes" / "validation-00000.safetensors").views
    for moved, view in enumerate(maps.views, 1):
        codes = model.encode(torch.from_numpy(View(moved, 2, False).of(IMAGES, train)))
        assert torch.equal(codes[0].short(), view[0])
    first = (run / "codes" / "train-00000.safetensors").stat().st_mtime_ns
    shutil.rmtree(run / "prior")
    prior(run, encodings=3, shift=2)
    assert (run / "codes" / "train-00000.safetensors").stat().st_mtime_ns == first, "extracted once"
    shutil.rmtree(run / "prior")
    prior(run)
    assert not load_codes(run / "codes" / "train-00000.safetensors").views and (run / "codes-old-1").is_dir()


def test_a_batch_takes_each_map_from_one_encoding_on_all_levels() -> None:
    def maps(offset: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.arange(20).reshape(20, 1, 1).short() + 1000 * level + 100 * offset for level in range(2))

    train = CodeMaps(maps(0), None, (maps(1), maps(2)))
    batches = CodeBatches(train, CodeMaps(maps(0), None), 1, 9, seed=4)
    indices = batch_indices(4, 0, 50, 20)
    batch = batches.training_batch(indices, torch.device("cpu"))
    expected = torch.from_numpy(indices.items + 100 * views(4, indices, 20, 3))
    assert torch.equal(batch.codes.flatten(), expected + 1000)
    assert torch.equal(batch.coarser[0].flatten(), expected)
    (validation,) = batches.validation_batches(0, 1, torch.device("cpu"))
    assert torch.equal(validation.codes, maps(0)[1].long())


def test_options_of_the_other_prior_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--attention-heads belongs to --prior pixelsnail and transformer; leave it out"
    ):
        prior(trained, out=tmp_path / "run", attention_heads=2)
    with pytest.raises(UsageError, match="--hidden 9 is not divisible by --attention-heads 4"):
        prior(trained, out=tmp_path / "run", prior="pixelsnail", hidden=9, attention_heads=4)
    with pytest.raises(UsageError, match="--condition-blocks belongs to levels that have a coarser one"):
        prior(trained, out=tmp_path / "run", condition_blocks=1)
