"""The loop: resuming is exact, extending goes on, nothing is overwritten, faults are named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import CheckpointError, DataError, DivergedError, UsageError, load, train_prior, train_vqvae
from pipeline.checkpoint import list_checkpoints
from pipeline.reporting import Silent
from pipeline.storage import load_tensors
from pipeline.training import Trainer
from tests.conftest import TINY_PRIOR, TINY_VQVAE, shapes

IMAGES, TARGETS = shapes()
STAGE1 = {**TINY_VQVAE, "flip": True, "micro_batches": 2, "checkpoints": 12, "keep": 20}
STAGE2 = {**TINY_PRIOR, "dropout": 0.5, "micro_batches": 2, "checkpoints": 12, "keep": 20, "average_decay": 0.9}


class InterruptedRunError(Exception):
    """Stands for a power cut."""


def interrupting(after: int) -> Silent:
    """A reporter whose loop is cut off after a number of steps."""

    class Reporter(Silent):
        def steps(self, steps: range, description: str) -> Any:
            for step in steps:
                if step == after:
                    raise InterruptedRunError
                yield step

    return Reporter()


def stage1(out: Path, **options: Any) -> Path:
    return train_vqvae(out=out, images=IMAGES, targets=TARGETS, **{**STAGE1, **options}).run / "vqvae"


def stage2(run: Path, **options: Any) -> Path:
    return train_prior(run, images=IMAGES, targets=TARGETS, **{**STAGE2, **options}).run / "prior" / "0"


def assert_same_files(first: Path, second: Path) -> None:
    """Every tensor of two checkpoints, bit for bit."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    assert names == sorted(path.name for path in second.glob("*.safetensors"))
    for name in names:
        one, other = load_tensors(first / name), load_tensors(second / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def last_checkpoint(stage: Path) -> Path:
    return list_checkpoints(stage / "checkpoints")[-1]


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_stage1_seven_steps_and_five_are_twelve(tmp_path: Path, rule: str) -> None:
    whole = stage1(tmp_path / "whole", codebook_rule=rule)
    with pytest.raises(InterruptedRunError):
        stage1(tmp_path / "parts", codebook_rule=rule, reporter=interrupting(7))
    assert last_checkpoint(tmp_path / "parts" / "vqvae").name == "step-000000007"
    parts = stage1(tmp_path / "parts", codebook_rule=rule, resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert_same_files(whole, parts)
    seventh = list_checkpoints(whole / "checkpoints")[6]
    with pytest.raises(AssertionError):
        assert_same_files(seventh, last_checkpoint(parts))


def test_stage2_seven_steps_and_five_are_twelve(tmp_path: Path) -> None:
    stage1(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    whole = stage2(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        stage2(tmp_path / "other", reporter=interrupting(7))
    parts = stage2(tmp_path / "other", resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert_same_files(whole, parts)
    logged = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, parts)]
    timeless = [[{k: v for k, v in e.items() if k != "images_per_second"} for e in lines] for lines in logged]
    assert timeless[0] == timeless[1]


def test_a_damaged_checkpoint_is_passed_over_by_auto_and_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        stage1(tmp_path / "run", reporter=interrupting(7))
    newest = last_checkpoint(tmp_path / "run" / "vqvae")
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        stage1(tmp_path / "ignored", resume=str(newest))
    whole, mended = stage1(tmp_path / "whole"), stage1(tmp_path / "run", resume="auto")
    assert_same_files(whole, mended)


def test_resuming_from_a_checkpoint_by_its_path(tmp_path: Path) -> None:
    whole = stage1(tmp_path / "whole")
    before = {path.name: path.read_bytes() for path in whole.glob("*.safetensors")}
    fourth = list_checkpoints(whole / "checkpoints")[3]
    train_vqvae(resume=str(fourth), images=IMAGES, targets=TARGETS, steps=14)
    assert last_checkpoint(whole).name == "step-000000014"
    assert {path.name: path.read_bytes() for path in whole.glob("*.safetensors")} != before
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        train_vqvae(resume=str(whole))


def test_a_finished_run_is_left_alone_unless_extended(tmp_path: Path) -> None:
    stage = stage1(tmp_path / "run", steps=6)
    weights = (stage / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"already holds a finished model.*--resume auto"):
        stage1(tmp_path / "run", steps=6)
    with pytest.raises(UsageError, match=r"has done its 6 steps.*more than 6"):
        stage1(tmp_path / "run", steps=6, resume="auto")
    with pytest.raises(UsageError, match="--steps 5 is less than the 6"):
        stage1(tmp_path / "run", steps=5, resume="auto")
    assert (stage / "model.safetensors").read_bytes() == weights
    done = train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, resume="auto", steps=9)
    assert done.steps == 9
    assert json.loads((stage / "config.json").read_text())["training"]["steps"] == 9
    load(tmp_path / "run")


def test_flags_that_contradict_the_saved_run_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        stage1(tmp_path / "run", reporter=interrupting(2))
    with pytest.raises(UsageError, match=r"(?s)--hidden 9 .* has 8.*--batch-size 4 .* has 8"):
        stage1(tmp_path / "run", resume="auto", hidden=9, batch_size=4)
    with pytest.raises(UsageError, match="already holds an unfinished run"):
        stage1(tmp_path / "run")


def test_resuming_on_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        stage1(tmp_path / "run", reporter=interrupting(2))
    with pytest.raises(DataError, match=r"not those that .* was trained on: fingerprint"):
        train_vqvae(out=tmp_path / "run", images=255 - IMAGES, targets=TARGETS, resume="auto")


def test_a_new_prior_on_a_frozen_stage1(tmp_path: Path, trained: Path) -> None:
    other = tmp_path / "other"
    stage2(trained, out=other)
    assert load(other).vqvae.sha256 == load(trained).vqvae.sha256
    assert load(other).prior is not None
    with pytest.raises(UsageError, match="already holds a finished model"):
        stage2(trained, out=other)


def test_codes_are_extracted_once(tmp_path: Path) -> None:
    stage1(tmp_path / "run")
    stage2(tmp_path / "run", steps=4)
    # No images are given now: only the extracted codes can serve.
    train_prior(tmp_path / "run", resume="auto", steps=6)


def test_only_the_latest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    stage = stage1(tmp_path / "run", keep=2)
    kept = sorted(path.name for path in (stage / "checkpoints").iterdir())
    assert [name for name in kept if name.startswith("step-")] == ["step-000000011", "step-000000012"]
    assert len([name for name in kept if name.startswith("best-")]) == 1


def test_the_best_evaluation_is_what_the_folder_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.2, 0.9, 0.7])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"nmse": next(values)})
    stage = stage1(tmp_path / "run", evaluations=4)
    sixth = list_checkpoints(stage / "checkpoints")[5]
    assert torch.equal(
        load_tensors(stage / "model.safetensors")["to_code_dim.weight"],
        load_tensors(sixth / "model.safetensors")["to_code_dim.weight"],
    )


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf).*--learning-rate .it is 1e.30"):
        stage1(tmp_path / "run", learning_rate=1e30, warmup_steps=0, clip=1e30)
    for checkpoint in list_checkpoints(tmp_path / "run" / "vqvae" / "checkpoints"):
        assert all(t.isfinite().all() for t in load_tensors(checkpoint / "model.safetensors").values())


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_minutes_become_steps_once_and_leave_no_trace(
    tmp_path: Path, stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.launch.steps_within", lambda trainer, seconds: _measured_then_twelve(trainer, seconds)
    )
    counted, timed = tmp_path / "counted", tmp_path / "timed"
    if stage is stage2:
        stage1(counted)
        shutil.copytree(counted, timed)
    first = stage(counted)
    second = stage(timed, steps=None, max_minutes=0.05)
    assert json.loads((second / "config.json").read_text())["training"]["steps"] == 12
    assert_same_files(last_checkpoint(first), last_checkpoint(second))


def _measured_then_twelve(trainer: Trainer, seconds: float) -> int:
    from pipeline.budget import steps_within

    assert steps_within(trainer, seconds) >= 1
    return 12


def test_averaged_weights_are_the_ones_evaluated(tmp_path: Path, trained: Path) -> None:
    stage = stage2(trained, out=tmp_path / "other", average_decay=0.9)
    final = last_checkpoint(stage)
    average, raw = load_tensors(final / "average.safetensors"), load_tensors(final / "model.safetensors")
    # The average as a recurrence over the weights of each step, with the decay's warm-up.
    checkpoints = list_checkpoints(stage / "checkpoints")
    expected = load_tensors(checkpoints[0] / "model.safetensors")["prior.head.1.weight"].double()
    for count, checkpoint in enumerate(checkpoints[1:], start=1):
        weight = load_tensors(checkpoint / "model.safetensors")["prior.head.1.weight"].double()
        expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + count) / (10 + count)))
    torch.testing.assert_close(average["module.prior.head.1.weight"].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(average["module.prior.head.1.weight"], raw["prior.head.1.weight"])
