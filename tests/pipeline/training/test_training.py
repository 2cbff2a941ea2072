"""The loop: resuming is exact, extending goes on, nothing is overwritten, faults are named."""

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from pipeline import CheckpointError, DataError, UsageError, load, train_prior, train_vqvae
from pipeline.data.codes.maps import load_codes
from pipeline.errors import InterruptedRunError
from pipeline.reporting import Silent
from pipeline.runs.validation import Metrics, read_validation
from pipeline.storage import load_tensors
from pipeline.training.cost.budget import Timed, steps_within
from pipeline.training.inputs.images import load_image_set
from pipeline.training.loop.checkpoint import list_checkpoints
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae.config import applies_to
from tests.pipeline.worker import KINDS, STAGE_1_KINDS
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

IMAGES, TARGETS = shapes()
AnyTrainer = Trainer[Any, Any]
STAGE1 = {**TINY_VQVAE, "flip": True, "micro_batches": 2, "checkpoints": 12, "keep": 20}
STAGE2 = {**TINY_PRIOR, "dropout": 0.5, "micro_batches": 2, "checkpoints": 12, "keep": 20, "average_decay": 0.9}

_DEEP = b"[" * 100_000 + b'\n{"step": 1' + b"0" * 400 + b"}\n"  # deeper than Python reads, more than a float holds


class PowerCutError(Exception):
    """Ends a run without warning."""


def interrupting(after: int) -> Silent:
    """A reporter whose loop is cut off after a number of steps."""

    class Reporter(Silent):
        def steps(self, steps: range, description: str) -> Any:
            for step in steps:
                if step == after:
                    raise PowerCutError
                yield step

    return Reporter()


class Meanwhile(Silent):
    """A reporter that does something else before the fourth step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def steps(self, steps: range, description: str) -> Any:
        for step in steps:
            if step == 3:
                self.action()
            yield step


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


@pytest.mark.parametrize("kind", [*KINDS, *STAGE_1_KINDS])
def test_stage1_seven_steps_and_five_are_twelve(tmp_path: Path, kind: str) -> None:
    options = {**KINDS, **STAGE_1_KINDS}[kind]
    left_out = {name: None for name in TINY_VQVAE if not applies_to(name, options.get("bottleneck", "vq"))}
    whole = stage1(tmp_path / "whole", **options, **left_out)
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "parts", **options, **left_out, reporter=interrupting(7))
    assert last_checkpoint(tmp_path / "parts" / "vqvae").name == "step-000000007"
    parts = stage1(tmp_path / "parts", **options, **left_out, resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert_same_files(whole, parts)
    seventh = list_checkpoints(whole / "checkpoints")[6]
    with pytest.raises(AssertionError):
        assert_same_files(seventh, last_checkpoint(parts))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_can_be_resumed_from(tmp_path: Path, number: signal.Signals) -> None:
    class Signalling(Silent):
        def steps(self, steps: range, description: str) -> Any:
            for step in steps:
                if step == 4:
                    os.kill(os.getpid(), number)
                yield step

    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=r"after step 5 of 12; .*parts --resume auto`") as caught:
        stage1(tmp_path / "parts", checkpoints=1, reporter=Signalling())
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert last_checkpoint(tmp_path / "parts" / "vqvae").name == "step-000000005"
    whole, parts = stage1(tmp_path / "whole"), stage1(tmp_path / "parts", checkpoints=1, resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))


def test_stage2_seven_steps_and_five_are_twelve(tmp_path: Path) -> None:
    stage1(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    whole = stage2(tmp_path / "run")
    with pytest.raises(PowerCutError):
        stage2(tmp_path / "other", reporter=interrupting(7))
    parts = stage2(tmp_path / "other", resume="auto")
    assert_same_files(last_checkpoint(whole), last_checkpoint(parts))
    assert_same_files(whole, parts)
    logged = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, parts)]
    timeless = [[{k: v for k, v in e.items() if k != "images_per_second"} for e in lines] for lines in logged]
    assert timeless[0] == timeless[1]


def test_a_damaged_checkpoint_is_passed_over_by_auto_and_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(7))
    newest = last_checkpoint(tmp_path / "run" / "vqvae")
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        train_vqvae(resume=str(newest), images=IMAGES, targets=TARGETS)
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


def test_an_extension_that_ended_before_its_first_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    """Once, it was taken for a run that had stopped early, and nothing that was advised let it go on."""
    stage1(tmp_path / "run", steps=6, checkpoints=1)
    again: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "out": tmp_path / "run", "resume": "auto"}
    with pytest.raises(PowerCutError):
        train_vqvae(**again, steps=12, reporter=interrupting(7))
    assert train_vqvae(**again).steps == 12


def test_stage_one_is_left_alone_while_a_prior_learns_its_codes(tmp_path: Path) -> None:
    stage1(tmp_path / "run")
    with pytest.raises(PowerCutError):
        stage2(tmp_path / "run", reporter=interrupting(7))
    with pytest.raises(UsageError, match="belongs to these weights"):
        train_vqvae(images=IMAGES, targets=TARGETS, out=tmp_path / "run", resume="auto", steps=20)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    """Once, it began to learn the embedded digits where a path was mistyped."""
    with pytest.raises(UsageError, match=r"nothing to resume in .*mistyped; name the run with --out"):
        train_vqvae(out=tmp_path / "mistyped", resume="auto")
    assert not (tmp_path / "mistyped").exists()


def test_patience_is_refused_where_the_latest_weights_are_kept(tmp_path: Path) -> None:
    latest = tiny_vqvae("gaussian")
    with pytest.raises(UsageError, match="--patience 2 belongs to"):
        train_vqvae(images=IMAGES, out=tmp_path / "run", **latest, patience=2)
    train_vqvae(images=IMAGES, out=tmp_path / "run", **latest)
    with pytest.raises(UsageError, match="--patience 2 belongs to"):
        train_vqvae(images=IMAGES, out=tmp_path / "run", resume="auto", steps=20, patience=2)


def test_what_was_trained_meanwhile_is_not_trained_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_given = load_image_set

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr("pipeline.training.stage1.load_image_set", load_given)
        stage1(tmp_path / "run", seed=5)  # another command, that was faster
        return load_given(*arguments)

    monkeypatch.setattr("pipeline.training.stage1.load_image_set", slowly)
    with pytest.raises(UsageError, match=r"another command has trained into .*run/vqvae meanwhile"):
        stage1(tmp_path / "run")
    assert load(tmp_path / "run").vqvae.config.training.seed == 5, "undamaged"


def test_codes_are_not_learned_while_stage_one_is_trained_further(tmp_path: Path) -> None:
    stage1(tmp_path / "run", steps=6)
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", steps=12, resume="auto", reporter=interrupting(9))
    with pytest.raises(UsageError, match=r"has done 6 steps and is to do 12: finish it with `gen train-vqvae --out"):
        stage2(tmp_path / "run")
    stage2(tmp_path / "run", out=tmp_path / "other")
    assert load(tmp_path / "other").priors


def test_a_folder_is_written_to_by_one_command(tmp_path: Path, trained: Path) -> None:
    def begin_another() -> None:
        with pytest.raises(UsageError, match="run/vqvae already holds an unfinished run"):
            stage1(tmp_path / "run")
        with pytest.raises(UsageError, match=r"another command is writing into .*run/vqvae: .*; wait for it"):
            stage1(tmp_path / "run", resume="auto")

    stage1(tmp_path / "run", reporter=Meanwhile(begin_another))
    shutil.copytree(trained / "vqvae", tmp_path / "coded" / "vqvae")
    with FileLock(tmp_path / "coded" / ".lock"), pytest.raises(UsageError, match="another command is writing into"):
        train_prior(tmp_path / "coded", images=IMAGES, targets=TARGETS, **TINY_PRIOR)


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
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(2))
    with pytest.raises(UsageError, match=r"(?s)--hidden 9 .* has 8.*--batch-size 4 .* has 8"):
        stage1(tmp_path / "run", resume="auto", hidden=9, batch_size=4)
    with pytest.raises(UsageError, match="already holds an unfinished run"):
        stage1(tmp_path / "run")


def test_resuming_on_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(2))
    with pytest.raises(
        DataError, match=r"not those that .* was trained on: there are 40 of .*; 40 changed \(image 0, "
    ):
        train_vqvae(out=tmp_path / "run", images=255 - IMAGES, targets=TARGETS, resume="auto")


def test_a_new_prior_on_a_frozen_stage1(tmp_path: Path, trained: Path) -> None:
    other = tmp_path / "other"
    stage2(trained, out=other)
    assert load(other).vqvae.codes_sha256 == load(trained).vqvae.codes_sha256
    assert load(other).vqvae.decoder_sha256 == load(trained).vqvae.decoder_sha256
    assert load(other).priors
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
    monkeypatch.setattr(Trainer, "evaluate", lambda self: Metrics({"nmse": next(values)}))
    stage = stage1(tmp_path / "run", evaluations=4)
    sixth = list_checkpoints(stage / "checkpoints")[5]
    assert torch.equal(
        load_tensors(stage / "model.safetensors")["levels.entry.weight"],
        load_tensors(sixth / "model.safetensors")["network.levels.entry.weight"],
    )


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_gradient_is_the_mean_over_the_batch_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Against one backward pass over the whole batch by hand."""
    seen: dict[str, torch.Tensor] = {}

    def compared(self: AnyTrainer, step: int, progress: float) -> Any:
        output = self.module(self.training_batch(self._batch_indices(step)), progress)
        expected = torch.autograd.grad(output.loss, list(self.module.parameters()))
        result = accumulate(self, step, progress)
        for parameter, gradient in zip(self.module.parameters(), expected, strict=True):
            seen[f"{step} {parameter.shape}"] = gradient
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6 + 1e-5 * float(gradient.abs().max()))
        return result

    accumulate = Trainer._accumulate
    monkeypatch.setattr(Trainer, "_accumulate", compared)
    stage1(tmp_path / "run", micro_batches=parts, steps=2, codebook_rule="gradient")
    assert any(gradient.abs().max() > 1e-3 for gradient in seen.values())


@pytest.mark.parametrize("stage", [stage1, stage2])
def test_minutes_become_steps_once_and_leave_no_trace(
    tmp_path: Path, stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.training.launch.steps_within", lambda trainer, seconds: _measured_then_twelve(trainer, seconds)
    )
    counted, timed = tmp_path / "counted", tmp_path / "timed"
    if stage is stage2:
        stage1(counted)
        shutil.copytree(counted, timed)
    first = stage(counted)
    second = stage(timed, steps=None, max_minutes=5.0)
    assert json.loads((second / "config.json").read_text())["training"]["steps"] == 12
    assert_same_files(last_checkpoint(first), last_checkpoint(second))


def _measured_then_twelve(trainer: AnyTrainer, seconds: float) -> Timed:
    assert steps_within(trainer, seconds).steps >= 1
    return Timed(12, 1.0)


def test_averaged_weights_are_the_ones_evaluated(tmp_path: Path, trained: Path) -> None:
    stage = stage2(trained, out=tmp_path / "other", average_decay=0.9, evaluations=1)
    final = last_checkpoint(stage)
    average, raw = load_tensors(final / "average.safetensors"), load_tensors(final / "model.safetensors")
    # The average as a recurrence over the weights of each step, with the decay's warm-up.
    checkpoints = list_checkpoints(stage / "checkpoints")
    expected = load_tensors(checkpoints[0] / "model.safetensors")["network.head.1.weight"].double()
    for count, checkpoint in enumerate(checkpoints[1:], start=1):
        weight = load_tensors(checkpoint / "model.safetensors")["network.head.1.weight"].double()
        expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + count) / (10 + count)))
    torch.testing.assert_close(average["module.network.head.1.weight"].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(average["module.network.head.1.weight"], raw["network.head.1.weight"])
    published = load_tensors(stage / "model.safetensors")
    assert published and all(torch.equal(published[name], average[f"module.network.{name}"]) for name in published)
    (prior,) = load(tmp_path / "other").priors
    codes = load_codes(tmp_path / "other" / "codes" / "validation-00000.safetensors")
    logits = prior.network(codes.levels[0].long(), codes.labels)
    nats = float(torch.nn.functional.cross_entropy(logits, codes.levels[0].long()))
    validation = read_validation(stage)
    reached = validation.metrics.values
    assert validation.step == 12 and reached["nats"] == pytest.approx(nats, rel=1e-5)
    assert reached["bits_per_image"] == pytest.approx(6 * nats / math.log(2), rel=1e-5)
    assert reached["uniform_nats"] == pytest.approx(math.log(12))
    frequencies = np.bincount(codes.levels[0].flatten()) / codes.levels[0].numel()
    nats_drawn = -sum(p * math.log(p) for p in frequencies if p)
    assert reached["unigram_nats"] == pytest.approx(nats_drawn)


def test_an_interrupted_extension_leaves_the_finished_model_whole(tmp_path: Path) -> None:
    """Once, the extension's config took the place of the model's, and the model counted as damaged."""
    stage1(tmp_path / "run", steps=6)
    again: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "out": tmp_path / "run", "resume": "auto"}
    with pytest.raises(PowerCutError):
        train_vqvae(**again, steps=12, reporter=interrupting(9))
    assert load(tmp_path / "run").vqvae.config.training.steps == 6
    done = train_vqvae(**again)
    assert done.steps == 12 and load(tmp_path / "run").vqvae.config.training.steps == 12


def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    """Once, the best weights it had kept stood in the way of the same step's."""
    whole = stage1(tmp_path / "whole", evaluations=12, checkpoints=1)
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "parts", evaluations=12, checkpoints=1, reporter=interrupting(7))
    parts = stage1(tmp_path / "parts", evaluations=12, checkpoints=1, resume="auto")
    assert_same_files(whole, parts)


def test_a_torn_line_of_the_log_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(7))
    log = tmp_path / "run" / "vqvae" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 8, "lo')
    stage1(tmp_path / "run", resume="auto")
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 12


def test_weights_that_a_prior_belongs_to_are_not_trained_further(trained: Path) -> None:
    before = (trained / "vqvae" / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"prior .* belongs to these weights; copy"):
        train_vqvae(out=trained, images=IMAGES, targets=TARGETS, resume="auto", steps=99)
    assert (trained / "vqvae" / "model.safetensors").read_bytes() == before


def test_what_resuming_would_ignore_is_refused(tmp_path: Path) -> None:
    stage = stage1(tmp_path / "run")
    with pytest.raises(UsageError, match="leave out --preset"):
        stage1(tmp_path / "run", resume="auto", preset="large")
    with pytest.raises(UsageError, match="leave out --out"):
        stage1(tmp_path / "elsewhere", resume=str(last_checkpoint(stage)))


def test_a_prior_on_a_copied_stage1_can_be_resumed_as_advised(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(PowerCutError):
        stage2(trained, out=tmp_path / "other", reporter=interrupting(7))
    with pytest.raises(UsageError, match="--resume auto"):
        stage2(trained, out=tmp_path / "other")
    stage2(trained, out=tmp_path / "other", resume="auto")
    assert load(tmp_path / "other").priors


def test_a_finished_run_without_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    """Once, deleting checkpoints/ and resuming trained from scratch over the finished model."""
    stage = stage1(tmp_path / "run", steps=6)
    weights = (stage / "model.safetensors").read_bytes()
    shutil.rmtree(stage / "checkpoints")
    with pytest.raises(
        UsageError, match=r"holds a finished model and no checkpoint to go on from, so it is left as it is"
    ):
        stage1(tmp_path / "run", steps=12, resume="auto")
    assert (stage / "model.safetensors").read_bytes() == weights
    load(tmp_path / "run")


def test_what_rescues_a_run_that_diverged_may_change_on_resuming(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(5))
    stage = stage1(tmp_path / "run", resume="auto", learning_rate=1e-4, clip=0.5, precision="bfloat16")
    saved = json.loads((stage / "config.json").read_text())["training"]
    assert (saved["learning_rate"], saved["clip"], saved["precision"]) == (1e-4, 0.5, "bfloat16")
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert max(rate for step, rate in rates.items() if step <= 5) > 1e-4
    assert max(rate for step, rate in rates.items() if step > 5) <= 1e-4


def test_a_damaged_newest_checkpoint_does_not_cost_the_best_weights(tmp_path: Path) -> None:
    """Once, falling back a step removed the best weights that lay ahead of it."""
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", evaluations=12, reporter=interrupting(7))
    checkpoints = tmp_path / "run" / "vqvae" / "checkpoints"
    [best] = checkpoints.glob("best-*")
    (last_checkpoint(tmp_path / "run" / "vqvae") / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", evaluations=12, resume="auto", reporter=interrupting(6))
    assert best.is_dir() and last_checkpoint(tmp_path / "run" / "vqvae").name == "step-000000006"
    whole, mended = stage1(tmp_path / "whole", evaluations=12), stage1(tmp_path / "run", evaluations=12, resume="auto")
    assert_same_files(whole, mended)


def test_a_bad_byte_in_the_log_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        stage1(tmp_path / "run", reporter=interrupting(7))
    log = tmp_path / "run" / "vqvae" / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'\xff\xfe\x00{"step": null}\n[1]\n' + _DEEP)
    stage1(tmp_path / "run", resume="auto")
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 12


def test_minutes_that_are_too_few_are_refused_with_the_reason(tmp_path: Path) -> None:
    message = r"--max-minutes leaves 0\.0 s for training.* evaluations of .*a step takes"
    with pytest.raises(UsageError, match=message) as refused:
        stage1(tmp_path / "run", steps=None, max_minutes=1e-6)
    [least] = re.findall(r"a single step would take ([\d.]+) minutes in all", str(refused.value))
    assert 0 < float(least) < 0.2
    stage1(tmp_path / "other", steps=None, max_minutes=2 * float(least) + 0.02)
