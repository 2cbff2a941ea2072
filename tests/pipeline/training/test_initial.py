"""A stage 1 that begins from that of another run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import CheckpointError, UsageError, load, train_vqvae
from pipeline.cli.main import main
from pipeline.reporting import Silent
from pipeline.runs.layout import IN_PROGRESS
from pipeline.runs.saved import VQVAERun, read_config
from pipeline.storage import load_tensors, save_tensors, write_manifest
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae.task import VQVAETask
from tests.tiny import TINY_VQVAE, shapes, tiny_vqvae

IMAGES, TARGETS = shapes()
FEW, OF_WHAT = shapes(12, (16, 8))  # another size
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 8, "precision": "float32"}
OTHERS: dict[str, dict[str, Any]] = {
    "ema": TINY_VQVAE,
    "gradient": {**TINY_VQVAE, "codebook_rule": "gradient"},
    "simvq": {**TINY_VQVAE, "codebook_rule": "simvq"},
    "levels": {**TINY_VQVAE, "levels": 2, "downsampling": 2},
    "likelihood": {**TINY_VQVAE, "likelihood": "gaussian"},
    "gumbel": tiny_vqvae("gumbel"),
    "fsq": tiny_vqvae("fsq"),
    "gaussian": tiny_vqvae("gaussian"),
}


class KilledError(Exception):
    """Stands for a process that is gone."""


def weights_before_the_first_step(patch: pytest.MonkeyPatch, **options: Any) -> dict[str, Tensor]:
    """What the network of a training has before it takes any step, of which this takes none."""
    found: dict[str, Tensor] = {}

    def stop(self: Trainer[Any, Any], step: int) -> None:
        assert step == 0 and isinstance(self.module, VQVAETask)
        found.update({name: tensor.clone() for name, tensor in self.module.network.state_dict().items()})
        raise KilledError

    with patch.context() as here:
        here.setattr(Trainer, "train_step", stop)
        with pytest.raises(KilledError):
            train_vqvae(**options)
    return found


def check_taken_over(found: dict[str, Tensor], init: Path, images: np.ndarray) -> None:
    """All tensors are those of the other run, but for the variance of the data."""
    expected = load_tensors(init / "vqvae" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert {name for name in found if not torch.equal(found[name], expected[name])} == {"data_variance"}
    assert float(found["data_variance"]) == pytest.approx((images / 255).var(), rel=0.1)


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_before_the_first_step_are_those_of_the_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    train_vqvae(out=tmp_path / "other", images=IMAGES, targets=TARGETS, **OTHERS[kind])
    new = {"out": tmp_path / "new", "images": FEW // 3, "targets": OF_WHAT, "init": tmp_path / "other"}
    check_taken_over(weights_before_the_first_step(monkeypatch, **new, **SHORT), tmp_path / "other", FEW // 3)


def test_a_run_begun_from_a_trained_one_is_ahead_of_one_begun_from_nothing(tmp_path: Path) -> None:
    longer = TINY_VQVAE | {"steps": 60, "learning_rate": 1e-2}
    train_vqvae(out=tmp_path / "other", images=IMAGES, targets=TARGETS, **longer)
    begun = train_vqvae(out=tmp_path / "begun", images=FEW, targets=OF_WHAT, init=tmp_path / "other", **SHORT)
    fresh = train_vqvae(out=tmp_path / "fresh", images=FEW, targets=OF_WHAT, **TINY_VQVAE | SHORT)
    assert begun.validation.values["nmse"] < 0.8 * fresh.validation.values["nmse"]
    batch = torch.from_numpy(FEW[:2])
    assert load(begun.run).encode(batch)[0].shape == (2, 4, 2)
    assert load(begun.run).vqvae.config.model.num_codes == TINY_VQVAE["num_codes"]


def test_an_option_of_training_may_be_another(tmp_path: Path, trained: Path) -> None:
    options = {**SHORT, "commitment": 0.5, "unit_codes": True, "init": trained}
    run = train_vqvae(out=tmp_path / "new", images=FEW, targets=OF_WHAT, **options).run
    model = read_config(run / "vqvae", VQVAERun).model
    assert (model.commitment, model.unit_codes, model.hidden) == (0.5, True, TINY_VQVAE["hidden"])


def test_what_a_run_was_begun_from_is_saved_and_shown(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    run = tmp_path / "new"
    train_vqvae(out=run, images=FEW, targets=OF_WHAT, init=trained, **SHORT, reporter=Listening())
    vqvae = load(trained).vqvae
    hashes = {"codes_sha256": vqvae.codes_sha256, "decoder_sha256": vqvae.decoder_sha256}
    assert json.loads((run / "vqvae" / "config.json").read_text())["init"] == {"run": str(trained), **hashes}
    shown = f"{trained}, codes_sha256 {vqvae.codes_sha256[:12]}, decoder_sha256 {vqvae.decoder_sha256[:12]}"
    assert any("begun from" in text and shown in text for text in said)
    with pytest.raises(SystemExit):
        main(["info", str(run)])
    assert shown in capsys.readouterr().out
    assert f"- begun from: {trained.name}, codes_sha256 {vqvae.codes_sha256}" in (run / "README.md").read_text()
    with pytest.raises(SystemExit):
        main(["info", str(trained)])
    assert "begun from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": 16}, "--hidden 16: the network of .*, which --init begins from, has 8\nleave these options out"),
        ({"num_codes": 20, "code_dim": 3}, "--num-codes 20: .* has 12\n--code-dim 3: .* has 4\n"),
        ({"downsampling": 2}, "--downsampling 2: .* has 4\n"),
        ({"levels": 2}, "--levels 2: .* has 1\n"),
        ({"bottleneck": "fsq"}, "--bottleneck fsq: .* has vq\n"),
        ({"codebook_rule": "simvq", "commitment": 0.1}, "^--codebook-rule simvq: .* has ema\nleave"),
        ({"likelihood": "gaussian"}, "--likelihood gaussian: .* has mse\n"),
        ({"images": shapes(12, channels=3)[0]}, "^images of 3 channels: .* has 1\ngive other images, or --colour"),
        ({"preset": "tiny"}, "--preset tiny sizes a network, and --init begins from one"),
        ({"init": 3}, "init must be the path of a file or folder"),
        ({"resume": "auto"}, "leave out --init"),
    ],
)
def test_a_network_of_other_sizes_is_refused_with_the_options_that_are_the_cause(
    tmp_path: Path, trained: Path, given: dict[str, Any], message: str
) -> None:
    options = {"init": trained, "images": FEW, "targets": OF_WHAT, **SHORT, **given}
    with pytest.raises(UsageError, match=message):
        train_vqvae(out=tmp_path / "new", **options)
    assert not (tmp_path / "new" / "vqvae").exists()


def test_a_run_that_is_missing_unfinished_or_damaged_is_refused(tmp_path: Path, trained: Path) -> None:
    damaged = Path(shutil.copytree(trained, tmp_path / "damaged"))
    path = damaged / "vqvae" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    unfinished = Path(shutil.copytree(trained, tmp_path / "unfinished"))
    (unfinished / "vqvae" / "manifest.json").unlink()
    cases = {tmp_path / "nowhere": "no run folder", damaged: "model.safetensors", unfinished: "is unfinished"}
    for init, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            train_vqvae(out=tmp_path / "new", images=FEW, targets=OF_WHAT, init=init, **SHORT)
    assert not (tmp_path / "new" / "vqvae").exists()
    with pytest.raises(UsageError, match="already holds a finished model"):
        train_vqvae(out=trained, images=FEW, targets=OF_WHAT, init=trained, **SHORT)


def test_a_run_resumed_before_its_first_checkpoint_begins_from_the_same_weights(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, run = Path(shutil.copytree(trained, tmp_path / "other")), tmp_path / "new"
    weights_before_the_first_step(monkeypatch, out=run, images=FEW, targets=OF_WHAT, init=other, **SHORT)
    again: dict[str, Any] = {"out": run, "resume": "auto", "images": FEW, "targets": OF_WHAT}
    check_taken_over(weights_before_the_first_step(monkeypatch, **again), other, FEW)
    path = other / "vqvae" / "model.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, {**tensors, "decoder.0.weight": tensors["decoder.0.weight"] + 1}, {})
    write_manifest(path.parent, list(json.loads((path.parent / "manifest.json").read_text())))
    with pytest.raises(CheckpointError, match="has changed since this run was to begin from it"):
        train_vqvae(**again)


def test_a_run_with_a_checkpoint_needs_the_other_no_more(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, run = Path(shutil.copytree(trained, tmp_path / "other")), tmp_path / "new"
    train_vqvae(out=run, images=FEW, targets=OF_WHAT, init=other, **SHORT)
    shutil.rmtree(other)
    done = train_vqvae(out=run, images=FEW, targets=OF_WHAT, resume="auto", steps=4)
    assert done.steps == 4
    assert read_config(run / "vqvae", VQVAERun).init == read_config(run / "vqvae", VQVAERun, IN_PROGRESS).init
