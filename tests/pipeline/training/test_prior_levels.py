"""Runs of several levels: training, resuming and drawing all of them, and what is reported."""

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipeline import CheckpointError, UsageError, generate, load, train_prior, train_vqvae
from pipeline.runs.saved import PriorRun, read_config
from pipeline.runs.validation import read_validation
from pipeline.training.cost.budget import Timed
from pipeline.training.launch import resume_command
from pipeline.training.loop.trainer import Trainer
from tests.pipeline.training.test_training import PowerCutError, assert_same_files, interrupting
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

every_level_kind = pytest.mark.parametrize("level_kind", ["hierarchical", "residual"])
LevelKind = Literal["hierarchical", "residual"]
IMAGES, TARGETS = shapes(size=(16, 24))


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> dict[LevelKind, Path]:
    """Runs of two levels of either kind that have no prior yet. Tests train priors in copies."""
    folder = tmp_path_factory.mktemp("levels")
    kinds: tuple[LevelKind, ...] = ("hierarchical", "residual")
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, **TINY_VQVAE, "levels": 2}
    return {kind: train_vqvae(out=folder / kind, level_kind=kind, **given).run for kind in kinds}


def train_levels(run: Path, **options: Any) -> Path:
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **{**TINY_PRIOR, **options})
    return run


@every_level_kind
@pytest.mark.parametrize("prior", ["pixelcnn", "pixelsnail", "transformer"])
def test_all_levels_are_trained_and_drawn_from(
    tmp_path: Path, stage1: dict[LevelKind, Path], level_kind: LevelKind, prior: str
) -> None:
    run = train_levels(shutil.copytree(stage1[level_kind], tmp_path / "run"), prior=prior)
    samples = generate(run, 7, seed=3, precision="float64")
    assert [tuple(level.shape[1:]) for level in samples.codes] == (
        [(2, 3), (4, 6)] if level_kind == "hierarchical" else [(4, 6), (4, 6)]
    )
    for batch_size in (1, 3):
        again = generate(run, 7, seed=3, batch_size=batch_size, precision="float64")
        assert all(torch.equal(one, other) for one, other in zip(again.codes, samples.codes, strict=True))
    model = load(run)
    assert [prior.config.level for prior in model.priors] == [0, 1]
    assert model.priors[1].config.model.coarser == (12,) and model.priors[0].config.model.coarser == ()


def test_the_second_level_is_drawn_with_noise_of_its_own(tmp_path: Path, stage1: dict[LevelKind, Path]) -> None:
    run = train_levels(shutil.copytree(stage1["residual"], tmp_path / "run"))
    codes = generate(run, 64, seed=3).codes
    assert float((codes[0] == codes[1]).double().mean()) < 0.5, "equal noise would draw nearly equal codes"


def test_levels_can_be_trained_one_by_one_and_resumed(tmp_path: Path, stage1: dict[LevelKind, Path]) -> None:
    run = shutil.copytree(stage1["hierarchical"], tmp_path / "run")
    options: dict[str, Any] = {**TINY_PRIOR, "images": IMAGES, "targets": TARGETS, "force": True}
    done = train_prior(run, level=1, **options)
    assert not (run / "prior" / "0").exists() and {"nats", "bits_per_image"} <= done.validation.values.keys()
    with pytest.raises(CheckpointError, match=r"no finished prior of level 0, of 2 levels; .*--resume auto"):
        generate(run, 1)
    with pytest.raises(UsageError, match=r"prior/1 already holds a finished model"):
        train_prior(run, **options)
    finished = (run / "prior" / "1" / "model.safetensors").read_bytes()
    resumed = train_prior(run, resume="auto", **options)
    assert resumed.steps == 12, "the finished level is left alone"
    assert (run / "prior" / "1" / "model.safetensors").read_bytes() == finished
    assert len(generate(run, 2)) == 2
    with pytest.raises(UsageError, match=r"--level 2 does not exist: .* levels 0 to 1"):
        train_prior(run, level=2, **options)


def test_minutes_are_shared_by_the_levels(
    tmp_path: Path, stage1: dict[LevelKind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.launch.steps_within", lambda *_: Timed(5, 100.0))  # whatever else runs here
    run = shutil.copytree(stage1["hierarchical"], tmp_path / "run")
    options = {name: value for name, value in TINY_PRIOR.items() if name != "steps"}
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, max_minutes=30, **options)
    minutes = [read_config(run / "prior" / level, PriorRun).training.max_minutes or 0 for level in ("0", "1")]
    assert min(minutes) > 0 and sum(minutes) < 30, "less what encoding took"
    assert minutes[1] / minutes[0] == pytest.approx(4), "as many times the positions"


def test_minutes_that_were_too_few_can_be_raised(
    tmp_path: Path, stage1: dict[LevelKind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps_within(_trainer: Trainer[Any, Any], seconds: float) -> Timed:
        if seconds < 30:
            raise UsageError("give more minutes")
        return Timed(5, 100.0)

    monkeypatch.setattr("pipeline.training.launch.steps_within", steps_within)
    run = shutil.copytree(stage1["hierarchical"], tmp_path / "run")
    options: dict[str, Any] = {name: value for name, value in TINY_PRIOR.items() if name != "steps"}
    options |= {"images": IMAGES, "targets": TARGETS, "force": True, "evaluations": 1}
    with pytest.raises(UsageError, match="give more minutes"):
        train_prior(run, max_minutes=1, **options)
    with pytest.raises(UsageError, match="prior/0 already holds an unfinished run"):
        train_prior(run, max_minutes=10, **options)
    with pytest.raises(UsageError, match="--steps and --max-minutes are two ways"):
        train_prior(run, max_minutes=10, steps=10, resume="auto", **options)
    train_prior(run, max_minutes=10, resume="auto", **options)
    assert len(generate(run, 2)) == 2
    minutes = [read_config(run / "prior" / level, PriorRun).training.max_minutes or 0 for level in ("0", "1")]
    assert minutes[1] / minutes[0] == pytest.approx(4)


def test_finished_levels_are_extended_where_there_is_something_left(
    tmp_path: Path, stage1: dict[LevelKind, Path]
) -> None:
    run = train_levels(shutil.copytree(stage1["residual"], tmp_path / "run"), steps=4)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, "resume": "auto"}
    train_prior(run, level=0, steps=9, **given)
    assert train_prior(run, steps=6, **given).steps == 6, "level 1 alone: the other has done nine"
    with pytest.raises(UsageError, match=r"--steps 6 is less than the 9 steps that .*prior/0"):
        train_prior(run, steps=6, **given)
    assert train_prior(run, steps=11, **given).steps == 22


def test_levels_that_go_on_alone_keep_their_numbers(tmp_path: Path) -> None:
    """Once, of three levels the second and third were reported as the first and second."""
    stage1 = {**TINY_VQVAE, "levels": 3, "level_kind": "residual"}
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **stage1)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True}
    train_prior(tmp_path / "run", **given, **{**TINY_PRIOR, "steps": 4})
    train_prior(tmp_path / "run", level=0, steps=6, resume="auto", **given)
    done = train_prior(tmp_path / "run", steps=6, resume="auto", **given)
    reached = [read_validation(tmp_path / "run" / "prior" / str(level)).metrics.values for level in range(3)]
    assert done.validation.levels == ({}, reached[1], reached[2]) and done.steps == 12
    assert "nats/1 " in done.validation.brief() and "bits_per_image/2 " in done.validation.brief()
    assert "nats/0" not in done.validation.brief()


def test_the_command_that_goes_on_names_the_level_where_others_were_not_begun(
    tmp_path: Path, stage1: dict[LevelKind, Path]
) -> None:
    for name in ("my run", "one"):
        shutil.copytree(stage1["residual"], tmp_path / name)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, **TINY_PRIOR}
    for name, level in (("my run", None), ("one", 1)):
        with pytest.raises(PowerCutError):
            train_prior(tmp_path / name, level=level, reporter=interrupting(7), **given)
    both, one = tmp_path / "my run", tmp_path / "one"
    assert resume_command(both / "prior" / "1") == f"gen train-prior '{both}' --resume auto"
    assert resume_command(both / "prior" / "1", alone=True) == f"gen train-prior '{both}' --resume auto --level 1"
    assert resume_command(one / "prior" / "1") == f"gen train-prior {one} --resume auto --level 1"
    assert resume_command(one / "vqvae") == f"gen train-vqvae --out {one} --resume auto"


def test_an_interrupted_extension_of_all_levels_goes_on_with_all(tmp_path: Path, stage1: dict[LevelKind, Path]) -> None:
    """Once, a level that had not been reached was left as it was, without a word."""
    run = train_levels(shutil.copytree(stage1["residual"], tmp_path / "run"), steps=4)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, "resume": "auto"}
    with pytest.raises(PowerCutError):
        train_prior(run, steps=9, reporter=interrupting(7), **given)
    assert train_prior(run, **given).steps == 18


def test_an_interrupted_run_goes_on_with_the_options_of_all_its_levels(
    tmp_path: Path, stage1: dict[LevelKind, Path]
) -> None:
    options: dict[str, Any] = {**TINY_PRIOR, "prior": "pixelsnail", "encodings": 2, "shift": 1}
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True}
    for name in ("whole", "parts"):
        shutil.copytree(stage1["hierarchical"], tmp_path / name)
    train_prior(tmp_path / "whole", **given, **options)
    with pytest.raises(PowerCutError):
        train_prior(tmp_path / "parts", **given, **options, reporter=interrupting(7))
    train_prior(tmp_path / "parts", **given, resume="auto")
    for level in ("0", "1"):
        whole, parts = (tmp_path / name / "prior" / level for name in ("whole", "parts"))
        assert_same_files(whole, parts)
        assert (whole / "config.json").read_text() == (parts / "config.json").read_text()


def test_the_bits_of_all_levels_are_reported(tmp_path: Path, stage1: dict[LevelKind, Path]) -> None:
    run = shutil.copytree(stage1["hierarchical"], tmp_path / "run")
    done = train_prior(run, images=IMAGES, targets=TARGETS, force=True, **TINY_PRIOR)
    for level, codes in enumerate((2 * 3, 4 * 6)):
        values = done.validation.levels[level]
        assert values["bits_per_image"] == pytest.approx(values["nats"] * codes / np.log(2))
        assert values["uniform_nats"] == pytest.approx(np.log(12))
