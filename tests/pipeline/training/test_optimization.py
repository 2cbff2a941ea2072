"""A step whose loss or gradient is no number changes nothing; several in a row stop the run before anything is lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import CheckpointError, DivergedError, train_prior, train_vqvae
from pipeline.runs.validation import Metrics, read_validation
from pipeline.storage import load_tensors, verify
from pipeline.training.loop.checkpoint import list_checkpoints, optimizer_tensors
from pipeline.training.loop.optimization import clear_moments
from pipeline.training.loop.trainer import Trainer
from tests.pipeline.training.test_training import PowerCutError, assert_same_files, interrupting, last_checkpoint
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes(48)
PER_EPOCH = 4  # steps: 32 of 48 images in batches of 8
COMMON: dict[str, Any] = {
    "images": IMAGES,
    "targets": TARGETS,
    "micro_batches": 2,
    "checkpoints": 12,
    "keep": 20,
    "average_decay": 0.9,
}
STAGE1: dict[str, Any] = {**TINY_VQVAE, **COMMON, "flip": True, "validation": 8 / 48, "test": 8 / 48}
STAGE2: dict[str, Any] = {**TINY_PRIOR, **COMMON, "dropout": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "ema": {"revival_threshold": 0.95},
    "gradient": {"codebook_rule": "gradient", "revival_threshold": 0.95},
    "adversarial": {"objective": "sharp"},
}


def stage1(out: Path, **options: Any) -> Path:
    return train_vqvae(out=out, **{**STAGE1, **options}).run / "vqvae"


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int, name: str = "") -> None:
    """Make the gradient of these steps infinite or NaN, in one number of one parameter."""
    accumulate = Trainer._accumulate

    def poisoned(self: Trainer[Any, Any], step: int, progress: float) -> Any:
        result = accumulate(self, step, progress)
        if step in steps:
            parameter = next(p for key, p in self.module.named_parameters() if key.startswith(name))
            assert parameter.grad is not None
            parameter.grad[(-1,) * parameter.ndim] = float("nan") if step % 2 else float("inf")
        return result

    monkeypatch.setattr(Trainer, "_accumulate", poisoned)


def states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """All that a training changes, before the first step and after each; filled while the loop runs."""
    seen: list[dict[str, torch.Tensor]] = []
    train_step = Trainer.train_step

    def recorded(self: Trainer[Any, Any], step: int) -> Any:
        result = train_step(self, step)
        assert self.state.average is not None
        average = {f"average.{name}": value for name, value in self.state.average.module.state_dict().items()}
        moments = optimizer_tensors(self.module, self.state.optimizer)
        seen.append({name: value.clone() for name, value in {**self.module.state_dict(), **moments, **average}.items()})
        return result

    monkeypatch.setattr(Trainer, "train_step", recorded)
    return seen


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, f"network.{part}") for kind in RULES for part in ("encoder", "decoder")]
    + [("adversarial", "sharp.discriminator")],
)
def test_a_step_with_a_gradient_that_is_no_number_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    poison(monkeypatch, 3, name=name)
    seen = states(monkeypatch)
    stage = stage1(tmp_path / "run", steps=5, **RULES[kind])
    _, _, before, skipped, after = seen
    assert [key for key, value in skipped.items() if not torch.equal(before[key], value)] == []
    changed = [key for key, value in after.items() if not torch.equal(before[key], value)]
    assert any("mean_counts" in key for key in changed) and any("exp_avg" in key for key in changed)
    assert any("average" in key for key in changed)
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines if "skipped_steps" in line] == [0, 0, 0, 1, 0]
    assert json.loads((last_checkpoint(stage) / "step.json").read_text())["skipped"] == 1


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A precision, and a run of both stages in it of which two steps are skipped. Tests only read it."""
    precision, run = str(request.param), tmp_path_factory.mktemp("uninterrupted") / "run"
    torch.set_num_threads(1)  # as in tests
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 5, 6)
        for train in (stage1, _stage2):
            assert len(load_tensors(train(run, precision=precision) / "model.safetensors")) > 5
    return precision, run


@pytest.mark.parametrize("after", [PER_EPOCH, 2 * PER_EPOCH, 2 * PER_EPOCH - 1])
def test_a_resumed_run_with_a_skipped_step_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[str, Path], after: int
) -> None:
    """Both stages, dropout and flips on, cut off at the end of an epoch or inside one, before or after the skip."""
    (precision, whole_run), run = uninterrupted, tmp_path / "run"
    poison(monkeypatch, 5, 6)
    for train in (stage1, _stage2):
        with pytest.raises(PowerCutError):
            train(run, precision=precision, reporter=interrupting(after))
        train(run, precision=precision, resume="auto")
    for part in ("vqvae", "prior/0"):
        whole, parts = whole_run / part, run / part
        assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
        assert_same_files(whole, parts)
        records = [json.loads((last_checkpoint(stage) / "step.json").read_text()) for stage in (whole, parts)]
        assert records[0] == records[1] and records[0]["skipped"] == 2
        with pytest.raises(AssertionError):  # the comparison can fail
            assert_same_files(list_checkpoints(whole / "checkpoints")[-2], last_checkpoint(parts))


def test_the_discriminator_has_a_learning_rate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step is the learning rate, whatever the gradient: two rates leave all else the same after it."""
    seen = states(monkeypatch)
    options = {"steps": 2, "warmup_steps": 0, "weight_decay": 0.1, "objective": "sharp", "adversarial_weight": 1e-6}
    for rate in (1.0, 0.25):
        stage1(tmp_path / str(rate), discriminator_rate=rate, **options)
    equal, quarter = seen[0], seen[2]
    others = [name for name in equal if name.startswith("network.")]
    assert others and all(torch.equal(equal[name], quarter[name]) for name in others)
    theirs = [name for name in equal if name.startswith("sharp.discriminator") and "exp_avg" not in name]
    theirs = [name for name in theirs if name.endswith(("weight", "bias"))]
    apart = torch.cat([(equal[name] - quarter[name]).flatten() for name in theirs]).abs()
    # Weight decay, too, is by the learning rate: .1 of small weights. Where a gradient is hardly there Adam does less.
    assert float(((apart / 0.75e-3 - 1).abs() < 0.05).float().mean()) > 0.98


def _stage2(run: Path, **options: Any) -> Path:
    return train_prior(run, force=True, **{**STAGE2, **options}).run / "prior" / "0"


def test_steps_that_are_skipped_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 2, *range(5, 12))
    message = r"no number in the last 5 steps up to step 10, .*checkpoints.*smaller --learning-rate .it is 0\.001"
    with pytest.raises(DivergedError, match=message) as caught:
        stage1(tmp_path / "run")
    assert caught.value.exit_code == 5
    stage = tmp_path / "run" / "vqvae"
    monkeypatch.undo()
    monkeypatch.setenv("GEN_CACHE", str(tmp_path / "cache"))
    assert stage1(tmp_path / "run", resume="auto", learning_rate=1e-4) == stage


def test_no_checkpoint_is_written_while_steps_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose next gradient is no number may be lost already: the one that was due follows the next good step."""
    with monkeypatch.context() as patched:
        poison(patched, 4, 5)
        stage = stage1(tmp_path / "run", steps=8, checkpoints=8, keep=8)
    assert [path.name[-1] for path in list_checkpoints(stage / "checkpoints")] == ["1", "2", "3", "4", "7", "8"]
    poison(monkeypatch, 3, 7)
    stage = stage1(tmp_path / "other", steps=8, checkpoints=2, keep=8)
    assert [path.name[-1] for path in list_checkpoints(stage / "checkpoints")] == ["5", "8"]


def test_a_learning_rate_beyond_reason_stops_the_run_before_lost_weights_are_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"--learning-rate .it is 1e.30"):
        stage1(tmp_path / "run", learning_rate=1e30, warmup_steps=0, clip=1e30, evaluations=1)
    for checkpoint in list_checkpoints(tmp_path / "run" / "vqvae" / "checkpoints"):
        assert all(t.isfinite().all() for t in load_tensors(checkpoint / "model.safetensors").values())


def test_an_evaluation_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is less than NaN: once, such a first evaluation would have stayed the best."""
    values = iter([0.5, float("nan")])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: Metrics({"nmse": next(values), "psnr": 20.0}))
    with pytest.raises(DivergedError, match=r"after step 6 gave nmse nan.*--learning-rate"):
        stage1(tmp_path / "run", evaluations=4)
    assert [path.name for path in (tmp_path / "run" / "vqvae" / "checkpoints").glob("best-*")] == ["best-000000003"]


def test_checkpoints_are_written_every_few_minutes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, so that a machine that becomes slower loses no more; and the weights do not depend on it."""
    whole = stage1(tmp_path / "whole", checkpoints=1)
    assert len(list_checkpoints(whole / "checkpoints")) == 1
    clock = iter(np.arange(0.0, 10_000.0, 100.0))  # seconds, at each time that the clock is read
    timed = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("pipeline.training.loop.interval.time", timed)
    saved = stage1(tmp_path / "saved", checkpoints=1)
    steps = [int(path.name[-2:]) for path in list_checkpoints(saved / "checkpoints")]
    assert steps == [5, 10, 12]  # 480 s after the beginning, and after the last one
    assert_same_files(whole, saved)


def test_best_weights_that_were_deleted_meanwhile_are_replaced_by_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Trainer.evaluate
    deleted: list[Path] = []

    def deleting(self: Trainer[Any, Any]) -> Metrics:
        if self.state.record.step == 12 and not deleted:
            deleted.append(self.checkpoints)
            shutil.rmtree(self.checkpoints)
            return Metrics({"nmse": 9.0})
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", deleting)
    stage = stage1(tmp_path / "run", evaluations=3)
    assert read_validation(stage).step == 12
    verify(stage)


def test_checkpoints_of_which_none_is_whole_are_not_thrown_away(tmp_path: Path) -> None:
    """Once, resuming went back to the start, and removed them."""
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(7), checkpoints=3)
    checkpoints = list_checkpoints(tmp_path / "run" / "vqvae" / "checkpoints")
    kept = {path: (path / "optimizer.safetensors").read_bytes() for path in checkpoints}
    for path in checkpoints:
        (path / "optimizer.safetensors").unlink()
    message = r"optimizer.safetensors is missing(.|\n)*no checkpoint in .* is whole; bring"
    with pytest.raises(CheckpointError, match=message):
        stage1(tmp_path / "run", resume="auto", checkpoints=3)
    assert list_checkpoints(tmp_path / "run" / "vqvae" / "checkpoints") == checkpoints
    for path, content in kept.items():
        (path / "optimizer.safetensors").write_bytes(content)
    stage1(tmp_path / "run", resume="auto", checkpoints=3)


def test_what_the_optimizer_remembers_of_replaced_rows_is_cleared() -> None:
    codebook = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([codebook])
    codebook.grad = torch.randn(4, 3)
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[codebook].items()}
    clear_moments(optimizer, codebook, torch.tensor([False, True, False, True]))
    for name in ("exp_avg", "exp_avg_sq"):
        after = optimizer.state[codebook][name]
        assert (after[[1, 3]] == 0).all() and torch.equal(after[[0, 2]], before[name][[0, 2]])
    assert torch.equal(optimizer.state[codebook]["step"], before["step"])
