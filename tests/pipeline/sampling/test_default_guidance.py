"""The guidance where none is given, which is the prior's own, and "best", which is what an evaluation chose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import (
    CheckpointError,
    SamplingOptions,
    UsageError,
    complete,
    generate,
    generate_files,
    load,
    train_prior,
    train_vqvae,
)
from pipeline.runs.evaluation import (
    Evaluation,
    Figure,
    JudgeFacts,
    Measured,
    Setting,
    evaluation_file,
    write_evaluation,
)
from pipeline.runs.layout import RunFolder
from pipeline.runs.saved import PriorRun, read_config
from pipeline.storage import read_json, write_json
from tests.pipeline.cli.test_cli import fails, succeeds
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

DEFAULT = "pipeline.training.levels.DEFAULT_GUIDANCE"
IMAGES, TARGETS = shapes()
GIVEN: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, **TINY_PRIOR}
SAME: dict[str, Any] = {"n": 8, "label": 1, "precision": "float64"}


def codes(run: Path, **options: Any) -> torch.Tensor:
    """Codes of a seed, exactly."""
    return generate(run, **SAME, **options).codes[0]


def saved_guidance(run: Path, level: int = 0) -> float:
    return read_config(run / "prior" / str(level), PriorRun).guidance


def test_a_new_prior_with_classes_saves_the_default_of_its_day(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(DEFAULT, 30.0)
    train_prior(trained, out=run, **GIVEN)
    monkeypatch.setattr(DEFAULT, 5.0)
    assert saved_guidance(run) == 30
    assert torch.equal(codes(run), codes(run, guidance=30.0))
    assert torch.equal(codes(run, guidance=1.0), codes(trained, guidance=1.0)), "but for the default the same prior"
    assert not torch.equal(codes(run), codes(run, guidance=1.0))
    assert torch.equal(load(run, precision="float64").sample(8, label=1).codes[0], codes(run))
    completed, guided = (complete(run, IMAGES[0], "top:0.5", guidance=scale).codes[0] for scale in (None, 30.0))
    assert torch.equal(completed, guided)


def test_a_resumed_prior_keeps_its_default(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(DEFAULT, 3.0)
    train_prior(trained, out=run, **{**GIVEN, "steps": 2})
    monkeypatch.setattr(DEFAULT, 5.0)
    train_prior(run, resume="auto", steps=3)
    assert saved_guidance(run) == 3
    assert "- guidance: 3 by default" in (run / "README.md").read_text()
    assert "guidance" in succeeds("info", run) and "3 by default" in succeeds("info", run)


def test_a_prior_that_cannot_be_guided_has_guidance_1(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DEFAULT, 30.0)
    train_prior(trained, out=tmp_path / "shown", **{**GIVEN, "steps": 2, "label_dropout": 0.0})
    train_vqvae(out=tmp_path / "classless", images=IMAGES, **{**TINY_VQVAE, "steps": 2})
    train_prior(tmp_path / "classless", images=IMAGES, force=True, **{**TINY_PRIOR, "steps": 2})
    for name in ("shown", "classless"):
        assert saved_guidance(tmp_path / name) == 1
        assert len(generate(tmp_path / name, 2)) == 2
        assert "guidance" not in (tmp_path / name / "README.md").read_text()


def test_all_levels_save_the_default_and_none_is_guided_where_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DEFAULT, 30.0)
    images, targets = shapes(size=(16, 24))
    options: dict[str, Any] = {**GIVEN, "images": images, "targets": targets, "steps": 2, "force": True}
    train_vqvae(out=tmp_path / "run", images=images, targets=targets, **TINY_VQVAE, levels=2)
    shutil.copytree(tmp_path / "run", tmp_path / "mixed")
    train_prior(tmp_path / "run", **options)
    assert [saved_guidance(tmp_path / "run", level) for level in (0, 1)] == [30, 30]
    assert load(tmp_path / "run").sampler().options.guidance == 30
    train_prior(tmp_path / "mixed", level=0, **options)
    train_prior(tmp_path / "mixed", level=1, **options, label_dropout=0.0)
    assert load(tmp_path / "mixed").sampler().options.guidance == 1
    with pytest.raises(UsageError, match="can do without a class"):
        generate(tmp_path / "mixed", 1, guidance=30.0)


@pytest.mark.parametrize("guidance", [-1.0, 1e300, "best", None])
def test_a_forged_default_is_refused(trained: Path, tmp_path: Path, guidance: object) -> None:
    path = shutil.copytree(trained, tmp_path / "run") / "prior" / "0" / "config.json"
    write_json(path, {**read_json(path), "guidance": guidance})
    with pytest.raises(CheckpointError, match="guidance"):
        load(tmp_path / "run")


def measured(guidance: float, temperature: float) -> Measured:
    return Measured(setting=Setting(guidance=guidance, temperature=temperature), figures={"kid": Figure(0.1)})


def evaluate(run: Path, **fields: Any) -> None:
    """Write an evaluation of a run that chose guidance 30 and temperature 0.5, or has other `fields`."""
    model = load(run)
    chosen = measured(30.0, 0.5)
    known: dict[str, Any] = {
        "codes_sha256": model.vqvae.codes_sha256,
        "decoder_sha256": model.vqvae.decoder_sha256,
        "prior_sha256": model.priors[0].sha256,
        "judge": JudgeFacts(number=1, sha256="0" * 64, learned="classes", accuracy=Figure(0.9)),
        **{name: {} for name in ("stage1", "stage2", "classes", "floor", "reconstructed")},
        "settings": (chosen,),
        "best": chosen.setting,
        "samples": chosen,
    }
    write_evaluation(RunFolder(run), Evaluation(images=2, test_images=2, seed=0, **{**known, **fields}))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def test_best_is_the_guidance_and_the_temperature_that_an_evaluation_chose(run: Path) -> None:
    evaluate(run)
    best = codes(run, guidance="best")
    assert torch.equal(best, codes(run, guidance=30.0, temperature=0.5))
    for other in ({"guidance": 30.0}, {"temperature": 0.5}):
        assert not torch.equal(best, codes(run, **other))
    kept = codes(run, guidance="best", top_k=2)
    assert torch.equal(kept, codes(run, guidance=30.0, temperature=0.5, top_k=2)) and not torch.equal(kept, best)
    model = load(run, precision="float64")
    assert torch.equal(model.sample(8, label=1, options=SamplingOptions(guidance="best")).codes[0], best)
    completed, expected = (
        complete(run, IMAGES[0], "top:0.5", **own).codes[0]
        for own in ({"guidance": "best"}, {"guidance": 30.0, "temperature": 0.5})
    )
    assert torch.equal(completed, expected)


def test_best_has_the_schedule_that_an_evaluation_chose(run: Path) -> None:
    evaluate(run, best=Setting(guidance=30.0, guidance_schedule="linear", temperature=0.5))
    best = codes(run, guidance="best")
    assert torch.equal(best, codes(run, guidance=30.0, guidance_schedule="linear", temperature=0.5))
    assert not torch.equal(best, codes(run, guidance=30.0, temperature=0.5))
    assert torch.equal(codes(run, guidance=30.0), codes(run, guidance=30.0, guidance_schedule="constant")), (
        "constant where none is given"
    )
    printed = succeeds("sample", run, "--n", 2, "--guidance", "best", "--out", "new")
    assert "guidance 30.0, guidance schedule linear, temperature 0.5" in printed
    with pytest.raises(UsageError, match="guidance_schedule linear, not constant; choose"):
        generate_files(run, n=2, guidance=30, temperature=0.5, out="new")


def test_a_schedule_that_changes_nothing_or_is_given_twice_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match=r"--guidance-schedule linear goes from 1 to the scale .* which is 1 here"):
        generate(run, 1, guidance=1.0, guidance_schedule="linear")
    with pytest.raises(UsageError, match=r"best has a schedule of its own; leave --guidance-schedule cosine out"):
        generate(run, 1, guidance="best", guidance_schedule="cosine")
    assert "--guidance-schedule" in fails(2, "sample", run, "--guidance-schedule", "square")


def test_a_request_has_the_numbers_and_is_not_that_of_another_best(run: Path) -> None:
    evaluate(run)
    printed = succeeds("sample", run, "--n", 2, "--guidance", "best", "--out", "new")
    assert "guidance 30.0, temperature 0.5" in printed and "best" not in printed
    request = json.loads(Path("new/request.json").read_text())
    assert (request["guidance"], request["temperature"]) == (30, 0.5)
    assert generate_files(run, n=2, guidance=30, temperature=0.5, out="new").new == 0
    evaluate(run, best=measured(2.0, 1.0).setting)
    with pytest.raises(UsageError, match=r"holds samples of guidance 30.0, not 2.0; temperature 0.5, not 1.0; choose"):
        generate_files(run, n=3, guidance="best", out="new")
    assert len(list(Path("new").glob("0*.png"))) == 2
    assert generate_files(run, n=3, guidance=30, temperature=0.5, out="new").new == 1


def test_a_request_without_guidance_has_the_default(trained: Path) -> None:
    own = saved_guidance(trained)
    assert f"guidance {own}, temperature 1.0" in succeeds("sample", trained, "--n", 2, "--out", "new")
    request = json.loads(Path("new/request.json").read_text())
    assert (request["guidance"], request["temperature"]) == (own, 1)
    assert "already holds all 2" in succeeds("sample", trained, "--n", 2, "--guidance", own, "--out", "new")


MEASURE = r"run `gen evaluate \S+ --guidance 1,1.5,2,3`"


@pytest.mark.parametrize("name", ["codes_sha256", "decoder_sha256", "prior_sha256"])
def test_an_evaluation_of_another_model_has_no_best(run: Path, name: str) -> None:
    evaluate(run, **{name: "0" * 64})
    with pytest.raises(UsageError, match=rf"of another model .*: {name} 0{{12}}, not \w{{12}}; {MEASURE}"):
        generate(run, 1, guidance="best")
    assert "evaluation" in succeeds("info", run) and "of another model" in succeeds("info", run)


def test_where_nothing_was_measured_or_chosen_there_is_no_best(run: Path) -> None:
    with pytest.raises(UsageError, match=rf"there is no \S+evaluation.json yet.*; {MEASURE}"):
        complete(run, IMAGES[0], "top:0.5", guidance="best")
    assert "evaluation" not in succeeds("info", run)
    evaluate(run, best=None, settings=())
    with pytest.raises(UsageError, match=rf"has compared no settings.*; {MEASURE}"):
        generate_files(run, guidance="best", out="new")
    assert "run `gen evaluate" in fails(2, "sample", run, "--guidance", "best", "--out", "new")
    assert not Path("new").exists()
    evaluate(run)
    assert "best with guidance 30, temperature 0.5" in succeeds("info", run)


def test_a_prior_trained_further_has_no_best_until_it_is_evaluated_anew(run: Path) -> None:
    evaluate(run)
    train_prior(run, resume="auto", steps=20)
    with pytest.raises(UsageError, match=rf"of another model .*: prior_sha256 \w{{12}}, not \w{{12}}; {MEASURE}"):
        generate(run, 1, guidance="best")
    assert len(generate(run, 1)) == 1


def test_what_cannot_be_guided_is_evaluated_at_temperatures(trained: Path, tmp_path: Path) -> None:
    train_prior(trained, out=tmp_path / "shown", **{**GIVEN, "steps": 2, "label_dropout": 0.0})
    with pytest.raises(UsageError, match=r"run `gen evaluate \S+ --temperature 0.8,0.9,1`"):
        generate(tmp_path / "shown", 1, guidance="best")
    evaluate(tmp_path / "shown", best=measured(1.0, 0.5).setting)
    assert torch.equal(codes(tmp_path / "shown", guidance="best"), codes(tmp_path / "shown", temperature=0.5))


def test_codes_that_are_numbers_have_no_best_and_a_temperature(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **tiny_vqvae("gaussian", steps=2))
    with pytest.raises(
        UsageError, match="a gaussian bottleneck are numbers: there is no --guidance of them, and so no"
    ):
        generate(tmp_path / "run", 1, guidance="best")
    plain, one, half = (generate(tmp_path / "run", 1, **own) for own in ({}, {"temperature": 1}, {"temperature": 0.5}))
    assert torch.equal(plain.codes[0], one.codes[0])
    torch.testing.assert_close(half.codes[0], plain.codes[0] / 2)


@pytest.mark.parametrize(("field", "number"), [("guidance", -1.0), ("temperature", 0.0), ("temperature", None)])
def test_a_forged_evaluation_is_refused(run: Path, field: str, number: float | None) -> None:
    evaluate(run)
    path = evaluation_file(RunFolder(run))
    content: Any = read_json(path)
    content["best"][field] = number
    write_json(path, content)
    with pytest.raises(CheckpointError, match=rf"evaluation.json.*{field}"):
        generate(run, 1, guidance="best")


@pytest.mark.parametrize("command", [("sample",), ("complete", "image.png", "--keep", "top:0.5", "--run")])
def test_a_word_that_is_neither_a_number_nor_best_is_refused(trained: Path, command: tuple[str, ...]) -> None:
    for word in ("x", "Best", ""):
        message = f"--guidance takes a number or best; got '{word}'"
        assert message in fails(2, *command, trained, "--guidance", word, "--out", "new.png")
    best = ["--guidance", "best", "--temperature", 1]
    message = fails(2, *command, trained, *best, "--out", "new.png")
    assert "--guidance best has a temperature of its own; leave --temperature 1 out" in message
    assert not Path("new.png").exists()


@pytest.mark.parametrize("guidance", ["bets", [1.0], {}, np.array(["best"])])
def test_what_is_no_guidance_is_refused_in_python_too(trained: Path, guidance: Any) -> None:
    with pytest.raises(UsageError, match="--guidance takes a number or best; got"):
        generate(trained, 1, guidance=guidance)


def test_numbers_of_other_types_are_guidance(trained: Path) -> None:
    sampler = load(trained).sampler(options=SamplingOptions(guidance=np.float32(2)))  # type: ignore[arg-type]
    assert sampler.options == replace(SamplingOptions(), guidance=2.0, guidance_schedule="constant", temperature=1.0)
    assert SamplingOptions(guidance=2).guidance == 2.0
