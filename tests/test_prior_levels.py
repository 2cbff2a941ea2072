"""Priors beneath coarser levels: what they may look at, the same logits a position at a time, and whole runs."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import CheckpointError, UsageError, generate, load, train_prior, train_vqvae
from pipeline.run import PriorRun, read_config, resuming
from pipeline.training import Trainer
from stage2_prior import Noise, PrefixStepper, Prior, PriorConfig, PriorError, Warp, code_nats, draw
from tests.conftest import TINY_PRIOR, TINY_VQVAE, shapes
from tests.priors import prior_classes, random_codes
from tests.test_incremental import BOUND, teacher_forced
from tests.test_training import PowerCutError, assert_same_files, interrupting

every_prior = pytest.mark.parametrize("kind", prior_classes())
every_level_kind = pytest.mark.parametrize("level_kind", ["hierarchical", "residual"])
LevelKind = Literal["hierarchical", "residual"]
IMAGES, TARGETS = shapes(size=(16, 24))


def third_level(kind: type[Prior], num_classes: int = 0) -> Prior:
    """A prior beneath a 2x3 and a 4x6 level, in float64, whose every weight is drawn anew."""
    config = PriorConfig(
        height=4, width=6, num_codes=7, num_classes=num_classes, coarser=(5, 6), hidden=16, layers=3, head=16
    )
    prior = kind(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return prior


def coarser_codes(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, (n, 2, 3), generator=generator), torch.randint(6, (n, 4, 6), generator=generator)]


@every_prior
def test_logits_look_at_coarser_codes_nearby_even_those_to_come(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(1, 4, 6), coarser_codes(1)
    before = prior(codes, None, coarser).detach()
    for level, (row, column), fine in ((0, (1, 2), (2, 3)), (1, (3, 5), (2, 4)), (1, (0, 0), (0, 0))):
        changed = [codes.clone() for codes in coarser]
        changed[level][0, row, column] = (changed[level][0, row, column] + 1) % 5
        difference = (prior(codes, None, changed).detach() - before).abs().amax(1)[0]
        assert float(difference[fine]) > 1e-6, "a coarser code of a later position is known already"


@every_prior
def test_no_later_code_of_the_level_itself_is_seen_beneath_coarser_levels(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(1, 4, 6), coarser_codes(1)
    before = prior(codes, None, coarser).flatten(2)
    for position in range(24):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        difference = (prior(changed, None, coarser).flatten(2) - before).abs().amax((0, 1))
        assert (difference[: position + 1] == 0).all()
        assert (difference[position + 1 :] > 0).all()


@every_prior
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_drawing_beneath_coarser_levels_is_the_plain_samplers(
    kind: type[Prior], num_classes: int, dtype: torch.dtype
) -> None:
    prior, coarser = third_level(kind, num_classes).to(dtype), coarser_codes(9)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, 0]) if num_classes else None
    drawn = []
    for stepper in (prior.stepper(9), PrefixStepper(prior, 9)):
        stepper.begin(labels, coarser)
        drawn.append(draw(stepper, Noise(4, torch.arange(9)), Warp()))
    assert torch.equal(drawn[0].codes, drawn[1].codes)
    nats = code_nats(prior, drawn[0].codes, labels, coarser).sum((1, 2)).double()
    torch.testing.assert_close(drawn[0].log_probability, -nats, rtol=0, atol=100 * BOUND[dtype])


@every_prior
def test_a_stepper_starts_anew_beneath_other_coarser_codes(kind: type[Prior]) -> None:
    prior, codes, coarser = third_level(kind), random_codes(3, 4, 6), coarser_codes(3)

    class Beneath:
        """The stepper as one without coarser levels."""

        def __init__(self, levels: list[Tensor]) -> None:
            self.levels = levels

        def begin(self, labels: Tensor | None) -> None:
            stepper.begin(labels, self.levels)

        def __getattr__(self, name: str) -> Any:
            return getattr(stepper, name)

    stepper = prior.stepper(3)
    first = teacher_forced(Beneath(coarser), codes, None)  # type: ignore[arg-type]
    teacher_forced(Beneath([level.flip(0) for level in coarser]), 6 - codes, None)  # type: ignore[arg-type]
    assert torch.equal(teacher_forced(Beneath(coarser), codes, None), first)  # type: ignore[arg-type]


@every_prior
def test_wider_windows_are_drawn_with_as_well(kind: type[Prior]) -> None:
    config = PriorConfig(height=5, width=6, num_codes=7, hidden=8, layers=3, kernel=5, first_kernel=7, head=8)
    prior, codes = kind(config).double().eval(), random_codes(3, 5, 6)
    expected = prior(codes, None).detach()
    torch.testing.assert_close(teacher_forced(prior.stepper(3), codes, None), expected, rtol=0, atol=1e-12)


@every_prior
def test_a_wrong_number_of_coarser_levels_is_refused(kind: type[Prior]) -> None:
    with pytest.raises(PriorError, match="has 2 coarser levels; 1 were given"):
        third_level(kind)(random_codes(1, 4, 6), None, coarser_codes(1)[:1])
    with pytest.raises(PriorError, match="has 2 coarser levels; 0 were given"):
        third_level(kind).stepper(1).begin(None)


def trained_levels(folder: Path, level_kind: LevelKind, **options: Any) -> Path:
    halvings = 1 if level_kind == "hierarchical" else 2
    stage1 = {**TINY_VQVAE, "levels": 2, "level_kind": level_kind, "halvings": halvings}
    train_vqvae(out=folder, images=IMAGES, targets=TARGETS, **stage1)
    train_prior(folder, images=IMAGES, targets=TARGETS, force=True, **{**TINY_PRIOR, **options})
    return folder


@every_level_kind
@pytest.mark.parametrize("prior", ["pixelcnn", "pixelsnail"])
def test_all_levels_are_trained_and_drawn_from(tmp_path: Path, level_kind: LevelKind, prior: str) -> None:
    run = trained_levels(tmp_path / "run", level_kind, prior=prior)
    samples = generate(run, 7, seed=3, precision="float64")
    assert [tuple(level.shape[1:]) for level in samples.codes] == (
        [(4, 6), (8, 12)] if level_kind == "hierarchical" else [(4, 6), (4, 6)]
    )
    for batch_size in (1, 3):
        again = generate(run, 7, seed=3, batch_size=batch_size, precision="float64")
        assert all(torch.equal(one, other) for one, other in zip(again.codes, samples.codes, strict=True))
    model = load(run)
    assert [prior.config.level for prior in model.priors] == [0, 1]
    assert model.priors[1].config.model.coarser == (12,) and model.priors[0].config.model.coarser == ()


def test_the_second_level_is_drawn_with_noise_of_its_own(tmp_path: Path) -> None:
    run = trained_levels(tmp_path / "run", "residual")
    codes = generate(run, 64, seed=3).codes
    assert float((codes[0] == codes[1]).double().mean()) < 0.5, "equal noise would draw nearly equal codes"


def test_levels_can_be_trained_one_by_one_and_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {**TINY_PRIOR, "images": IMAGES, "targets": TARGETS, "force": True}
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE, levels=2)
    done = train_prior(run, level=1, **options)
    assert not (run / "prior" / "0").exists() and {"nats", "bits_an_image"} <= done.held_out.keys()
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


def test_minutes_are_shared_by_the_levels(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE, levels=2)
    options = {name: value for name, value in TINY_PRIOR.items() if name != "steps"}
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, max_minutes=0.1, evaluations=1, **options)
    minutes = [read_config(run / "prior" / level, PriorRun).training.max_minutes or 0 for level in ("0", "1")]
    assert min(minutes) > 0 and sum(minutes) < 0.1, "less what encoding took"
    assert minutes[1] / minutes[0] == pytest.approx(4), "as many times the positions"


def test_minutes_that_were_too_few_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps_within(_trainer: Trainer, seconds: float) -> int:
        if seconds < 30:
            raise UsageError("give more minutes")
        return 5

    monkeypatch.setattr("pipeline.launch.steps_within", steps_within)
    run = tmp_path / "run"
    train_vqvae(out=run, images=IMAGES, targets=TARGETS, **TINY_VQVAE, levels=2)
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


def test_finished_levels_are_extended_where_there_is_something_left(tmp_path: Path) -> None:
    run = trained_levels(tmp_path / "run", "residual", steps=4)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, "resume": "auto"}
    train_prior(run, level=0, steps=9, **given)
    assert train_prior(run, steps=6, **given).steps == 6, "level 1 alone: the other has done nine"
    with pytest.raises(UsageError, match=r"--steps 6 is less than the 9 steps that .*prior/0"):
        train_prior(run, steps=6, **given)
    assert train_prior(run, steps=11, **given).steps == 22


def test_the_command_that_goes_on_names_the_level_where_others_were_not_begun(tmp_path: Path) -> None:
    stage1 = {**TINY_VQVAE, "levels": 2, "level_kind": "residual"}
    for name in ("my run", "one"):
        train_vqvae(out=tmp_path / name, images=IMAGES, targets=TARGETS, **stage1)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, **TINY_PRIOR}
    for name, level in (("my run", None), ("one", 1)):
        with pytest.raises(PowerCutError):
            train_prior(tmp_path / name, level=level, reporter=interrupting(7), **given)
    both, one = tmp_path / "my run", tmp_path / "one"
    assert resuming(both / "prior" / "1") == f"gen train-prior '{both}' --resume auto"
    assert resuming(both / "prior" / "1", alone=True) == f"gen train-prior '{both}' --resume auto --level 1"
    assert resuming(one / "prior" / "1") == f"gen train-prior {one} --resume auto --level 1"
    assert resuming(one / "vqvae") == f"gen train-vqvae --out {one} --resume auto"


def test_an_interrupted_extension_of_all_levels_goes_on_with_all(tmp_path: Path) -> None:
    """Once, a level that had not been reached was left as it was, without a word."""
    run = trained_levels(tmp_path / "run", "residual", steps=4)
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True, "resume": "auto"}
    with pytest.raises(PowerCutError):
        train_prior(run, steps=9, reporter=interrupting(7), **given)
    assert train_prior(run, **given).steps == 18


def test_an_interrupted_run_goes_on_with_the_options_of_all_its_levels(tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY_PRIOR, "prior": "pixelsnail", "encodings": 2, "shift": 1}
    given: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "force": True}
    for name in ("whole", "parts"):
        train_vqvae(out=tmp_path / name, images=IMAGES, targets=TARGETS, **TINY_VQVAE, levels=2)
    train_prior(tmp_path / "whole", **given, **options)
    with pytest.raises(PowerCutError):
        train_prior(tmp_path / "parts", **given, **options, reporter=interrupting(7))
    train_prior(tmp_path / "parts", **given, resume="auto")
    for level in ("0", "1"):
        whole, parts = (tmp_path / name / "prior" / level for name in ("whole", "parts"))
        assert_same_files(whole, parts)
        assert (whole / "config.json").read_text() == (parts / "config.json").read_text()


def test_the_bits_of_all_levels_are_reported(tmp_path: Path) -> None:
    train_vqvae(out=tmp_path / "run", images=IMAGES, targets=TARGETS, **TINY_VQVAE, levels=2)
    done = train_prior(tmp_path / "run", images=IMAGES, targets=TARGETS, force=True, **TINY_PRIOR)
    for level, codes in enumerate((2 * 3, 4 * 6)):
        bits = done.held_out[f"nats_{level}"] * codes / np.log(2)
        assert done.held_out[f"bits_an_image_{level}"] == pytest.approx(bits)
        assert done.held_out[f"nats_uniform_{level}"] == pytest.approx(np.log(12))
