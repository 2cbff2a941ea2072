"""Options are written once: flags, defaults, checks and help come from the configurations."""

import json
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import torch
from click.testing import CliRunner

from pipeline import UsageError, train_prior, train_vqvae
from pipeline.cli.main import main
from pipeline.config.data import DataConfig
from pipeline.config.options import build, flatten, option_fields
from pipeline.config.presets import PRESETS, PresetName
from pipeline.config.training import TrainingConfig
from pipeline.training.cost.memory import training_memory
from pipeline.training.launch import resolve_options
from pipeline.training.stage1 import new_options
from stage1_vqvae import VQVAEConfig
from stage2_prior import PriorConfig
from stage2_prior.config import PriorName

STAGE1, STAGE2 = (DataConfig, VQVAEConfig, TrainingConfig), (PriorConfig, TrainingConfig)


@pytest.mark.parametrize(("name", "configs"), [("train-vqvae", STAGE1), ("train-prior", STAGE2)])
def test_every_field_of_a_configuration_is_a_flag_with_its_help(name: str, configs: tuple[type, ...]) -> None:
    command = main.commands[name]
    flags = {p.name: p for p in command.params if isinstance(p, click.Option)}
    for config in configs:
        for field, info in option_fields(config).items():
            assert str(info.description) in str(flags[field].help)
    assert "height" not in flags and "num_classes" not in flags, "what the data decides is no flag"


def test_names_are_unique_over_the_configurations_of_a_command() -> None:
    for configs in (STAGE1, STAGE2):
        names = [name for config in configs for name in option_fields(config)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_options_of_every_prior(preset: PresetName) -> None:
    build(PRESETS[preset].defaults("vqvae", {}), DataConfig, VQVAEConfig, TrainingConfig)
    usual, _ = build(PRESETS[preset].defaults("prior", {}), PriorConfig, TrainingConfig)
    assert {usual.prior, *PRESETS[preset].instead} == set(get_args(PriorName))
    for name in get_args(PriorName):
        build({**PRESETS[preset].defaults("prior", {"prior": name}), "prior": name}, PriorConfig, TrainingConfig)


def test_the_learning_rate_of_a_transformer_that_is_wider_falls_and_that_of_convolutions_does_not() -> None:
    base = PRESETS["base"]
    rates = {width: base.defaults("prior", {"hidden": width})["learning_rate"] for width in (32, 96, 192)}
    assert rates == {32: 0.016, 96: 0.016, 192: 0.008} and base.defaults("prior", {})["learning_rate"] == 0.016
    for asked in ({"prior": "pixelcnn"}, {"prior": "pixelcnn", "hidden": 192}):
        assert base.defaults("prior", asked)["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    ("preset", "side"), [("photos64-cpu", 64), ("photos64", 64), ("photos128", 128), ("photos256", 256)]
)
def test_presets_of_photographs_make_maps_of_16x16_codes_that_their_prior_sees_most_of(
    preset: PresetName, side: int
) -> None:
    size = {"height": side, "width": side}
    model, training = build(PRESETS[preset].vqvae, VQVAEConfig, TrainingConfig, derived=size)
    assert model.network == "residual" and model.grids == ((16, 16),)
    assert training_memory(model, training, torch.device("cuda")) < 64 * 2**30, "room on a GPU of 80 GB"
    for asked in ({}, {"prior": "pixelcnn"}):
        prior, _ = build({**PRESETS[preset].defaults("prior", asked), **asked}, PriorConfig, TrainingConfig)
        assert (prior.reach is None) == (prior.prior == "transformer") and (prior.reach or 12) >= 12


def test_all_bad_options_are_reported_at_once() -> None:
    bad: dict[str, Any] = {"hidden": 0, "batch_size": -1, "validation": 2.0, "codebook_rule": "guess", "wings": 2}
    with pytest.raises(UsageError) as caught:
        train_vqvae(steps=1, **bad)
    message = str(caught.value)
    for part in ("--hidden", "got 0", "--batch-size", "got -1", "--validation", "--codebook-rule", "'wings'"):
        assert part in message


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(UsageError, match=r"--steps: .* got 'xxx") as refused:
        build({"steps": "x" * 10**6, "seed": [1] * 10**5}, TrainingConfig)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["data", "test_data"])
def test_a_path_with_nul_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} holds a NUL character"):
        new_options({name: "a\0b"}, None, None)


@pytest.mark.parametrize("preset", [[], "", 1, b"tiny"])
def test_what_is_no_preset_is_refused(preset: object) -> None:
    with pytest.raises(UsageError, match="there is no preset"):
        new_options({}, preset, None)  # type: ignore[arg-type]


def test_the_prior_reports_them_too(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)window.*kernel = 4.*--clip"):
        train_prior(trained, out="other", kernel=4, clip=0.0)


SAVED = {"batch_size": 48, "steps": 7}


def test_what_is_given_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"format_version": 4, "kind": "vqvae", "model": {"hidden": 24, "height": 9}, "training": SAVED})
    )
    merged = resolve_options("vqvae", {"batch_size": 96}, "tiny", path, STAGE1)
    assert merged["batch_size"] == 96 and merged["hidden"] == 24 and merged["num_codes"] == 64
    assert "height" not in merged
    assert "steps" not in resolve_options("vqvae", {"max_minutes": 1.0}, "tiny", None, STAGE1)
    with pytest.raises(UsageError, match="--steps and --max-minutes"):
        resolve_options("vqvae", {"max_minutes": 1.0, "steps": 3}, "tiny", None, STAGE1)
    with pytest.raises(UsageError, match="is of kind 'vqvae', and this stage's are 'prior'"):
        resolve_options("prior", {}, "tiny", path, STAGE1)
    path.write_text("[]")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        resolve_options("vqvae", {}, "tiny", path, STAGE1)


def test_a_configuration_survives_flattening() -> None:
    config = TrainingConfig(steps=5, batch_size=12, micro_batches=3)
    assert build(flatten(config), TrainingConfig) == (config,)


def test_micro_batches_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="10 is not divisible by --micro-batches 4"):
        TrainingConfig(batch_size=10, micro_batches=4)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0 and len(result.output) > 100


def test_options_that_mean_nothing_are_refused_by_name() -> None:
    given = {
        "bottleneck": "gaussian",
        "num_codes": 64,
        "mmd_weight": 2.0,
        "objective": "nmse",
        "adversarial_weight": 1.0,
        "level_kind": "residual",
    }
    with pytest.raises(UsageError) as error:
        new_options(given, None, None)
    said = str(error.value)
    assert "--num-codes belongs to --bottleneck vq or gumbel or fsq" in said
    assert "--mmd-weight belongs to --bottleneck mmd" in said
    assert "--adversarial-weight belongs to --objective sharp" in said
    assert "--level-kind belongs to --levels of 2 or more" in said
    with pytest.raises(UsageError, match="--revival-ends belongs to other codebook rules"):
        new_options({"codebook_rule": "simvq", "revival_ends": 0.5}, None, None)
    assert new_options({"downsampling": 256, "levels": 7, "image_size": "32768"}, None, None).model.levels == 7


def test_all_that_does_not_fit_together_is_named_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"not divisible by --downsampling = 4(.|\n)*no product of 2 to 8(.|\n)*judges patches"
    ):
        VQVAEConfig(height=3, width=3, bottleneck="fsq", num_codes=509, objective="sharp")
