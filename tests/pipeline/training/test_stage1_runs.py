"""Whole runs of stage 1: each bottleneck trained, saved, loaded and sampled from; levels; adversarial training."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import CheckpointError, UsageError, generate, generate_files, load, train_prior, train_vqvae
from pipeline.cli.main import main
from pipeline.config.options import build, option_names
from pipeline.data.codes.maps import load_codes
from pipeline.data.codes.shards import read_index, read_parts
from pipeline.data.splits import load_split
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Silent
from pipeline.runs.validation import Metrics
from pipeline.training.cost.budget import Timed
from pipeline.training.cost.memory import multiply_adds
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

Discrete = Literal["vq", "gumbel", "fsq"]
Continuous = Literal["gaussian", "mmd", "none"]
Kind = Literal["hierarchical", "residual"]
every_discrete_one = pytest.mark.parametrize("name", ["vq", "gumbel", "fsq"])
every_kind = pytest.mark.parametrize("kind", ["hierarchical", "residual"])


def continuous(name: Continuous) -> VQVAEConfig:
    return VQVAEConfig(bottleneck=name, code_dim=3, channels=1, height=8, width=8, hidden=8)


@every_discrete_one
def test_each_discrete_bottleneck_feeds_stage_two(tmp_path: Path, name: Discrete) -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **tiny_vqvae(name, steps=4))
    train_prior("run", images=images, targets=targets, force=True, **{**TINY_PRIOR, "steps": 4})
    samples = generate("run", 3)
    assert samples.images.shape == (3, 1, 8, 12) and int(samples.codes[0].max()) < 12


@pytest.mark.parametrize("name", ["gaussian", "mmd"])
def test_images_are_drawn_without_a_prior(name: Continuous, tmp_path: Path) -> None:
    images, targets = shapes()
    train_vqvae(out="runs/run", images=images, targets=targets, **tiny_vqvae(name))
    assert load("runs/run").encode(torch.from_numpy(images[:2]))[0].shape == (2, 4, 2, 3)
    with pytest.raises(UsageError, match=r"codes of .* are numbers .* a prior needs integers"):
        train_prior("runs/run", images=images, targets=targets, **TINY_PRIOR)
    samples = generate(None, 5, seed=3)  # the newest run that can be drawn from
    assert samples.images.shape == (5, 1, 8, 12) and samples.labels is None
    again = generate("runs/run", 2, seed=3)
    assert torch.equal(again.codes[0], samples.codes[0][:2])
    cold = generate("runs/run", 2, seed=3, temperature=0.5)
    torch.testing.assert_close(cold.codes[0], 0.5 * again.codes[0])
    drawn = generate_files("runs/run", n=5, seed=3, batch_size=2)
    assert drawn.new == 5 and generate_files("runs/run", n=5, seed=3).new == 0
    for options in ({"label": 0}, {"top_k": 3}, {"top_p": 0.5}):
        with pytest.raises(UsageError, match=r"codes of a .* bottleneck are numbers"):
            generate("runs/run", 2, **options)


def test_a_run_with_random_crops_is_of_the_window_and_sees_centres_but_in_training(tmp_path: Path) -> None:
    images, targets = shapes(size=(9, 14))
    centres = images[:, :, :8, 1:13]
    given: dict[str, Any] = {"images": images, "targets": targets}
    train_vqvae(out="run", image_size="8x12", crop="random", **given, **TINY_VQVAE)
    train_vqvae(out="centre", images=centres, targets=targets, **TINY_VQVAE)
    model, other = load("run"), load("centre")
    assert (model.vqvae.config.model.height, model.vqvae.config.model.width) == (8, 12)
    assert torch.equal(model.vqvae.network.data_variance, other.vqvae.network.data_variance)
    assert model.vqvae.codes_sha256 != other.vqvae.codes_sha256, "it was trained on other windows"
    train_prior("run", force=True, **given, **{**TINY_PRIOR, "steps": 1})
    maps = read_parts(model.run.folder.codes, read_index(model.run.folder.codes).identity, model.vqvae.config.model, 2)
    assert maps is not None
    parts = load_split(model.run.folder.vqvae / "split.safetensors")
    for part in ("train", "validation"):
        [codes_on_disk] = maps[part].rows(np.arange(len(maps[part])), 1).levels
        assert torch.equal(codes_on_disk.long(), model.encode(centres[getattr(parts, part)])[0].long())
    codes = []
    for name, picture in (("larger", images[0, 0]), ("window", centres[0, 0])):
        Image.fromarray(picture).save(f"{name}.png")
        assert (
            CliRunner().invoke(main, ["encode", f"{name}.png", "--run", "run", "--out", f"{name}.codes"]).exit_code == 0
        )
        codes.append(load_codes(Path(f"{name}.codes")).levels[0].long())
    assert torch.equal(codes[0], model.encode(centres[:1])[0].long()) and torch.equal(*codes)
    mask = np.zeros((9, 14), np.uint8)
    mask[:5] = 255
    shown = []
    for name, picture in (("larger", mask), ("window", mask[:8, 1:13])):
        Image.fromarray(picture).save("mask.png")
        command = [
            "complete",
            "larger.png",
            "--run",
            "run",
            "--mask",
            "mask.png",
            "--n",
            "1",
            "--out",
            f"{name}-done.png",
        ]
        assert CliRunner().invoke(main, command).exit_code == 0
        shown.append(Path(f"{name}-done.png").read_bytes())
    assert shown[0] == shown[1], "a mask lies over the image, or over its window"
    assert train_vqvae(out="run2", config="run/vqvae/config.json", **given).steps == 12
    assert load("run2").vqvae.codes_sha256 == model.vqvae.codes_sha256, "crops are those of the seed"


def test_standard_normal_latents_are_that() -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **tiny_vqvae("gaussian", steps=1))
    latents = generate("run", 400).codes[0]
    assert abs(float(latents.mean())) < 0.03 and float(latents.std()) == pytest.approx(1, abs=0.03)


def test_of_a_plain_autoencoder_there_is_nothing_to_draw(capsys: pytest.CaptureFixture[str]) -> None:
    images, targets = shapes()
    train_vqvae(out="runs/run", images=images, targets=targets, **tiny_vqvae("none", steps=2))
    with pytest.raises(SystemExit) as ended:
        main(["sample", "runs/run"])
    assert ended.value.code == 2 and "there is nothing to draw from" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no finished prior under"):
        generate()


@pytest.mark.parametrize("name", ["gaussian", "mmd", "none"])
def test_floats_travel_through_files(name: Continuous, tmp_path: Path) -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **tiny_vqvae(name, steps=2))
    samples = load("run").encode(torch.from_numpy(images[:3]))
    assert samples[0].dtype == torch.float32
    model = VQVAE(continuous(name)).double().eval()
    batch = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    codes = model.encode(batch)
    assert codes[0].dtype == torch.float64
    assert torch.equal(model.decode((codes[0].float(),)), model.decode(codes))


@every_kind
def test_levels_are_trained_saved_and_loaded(kind: Kind) -> None:
    images, targets = shapes(size=(16, 24))
    options = {**TINY_VQVAE, "levels": 2, "level_kind": kind, "evaluations": 1}
    done = train_vqvae(out="run", images=images, targets=targets, **options)
    coarse, fine = done.validation.levels
    assert "perplexity" in coarse and "perplexity" in fine and "bits_per_image" in coarse
    loaded = load("run")
    batch = torch.from_numpy(images[:4])
    codes = loaded.encode(batch)
    assert len(codes) == 2 and torch.equal(loaded.reconstruct(batch, levels=1), loaded.decode(codes[:1]))
    with pytest.raises(UsageError, match=r"got \[\(4, 4, 6\), \(4, 4, 6\), \(4, 4, 6\)\]|got \[\(4, 2, 3\), "):
        loaded.decode((codes[0], codes[1], codes[1]))
    with pytest.raises(CheckpointError, match="no finished prior of level 0, 1, of 2 levels"):
        generate("run", 1)


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        """Add to the text."""
        self.text += f"{text}\n"


def test_the_residual_network_is_trained_saved_loaded_and_resumed(tmp_path: Path) -> None:
    images, targets = shapes(size=(16, 24))
    options = {**TINY_VQVAE, "network": "residual", "hidden": 16, "average_decay": 0.9}
    del options["residual_channels"]
    run = train_vqvae(out=tmp_path / "run", images=images, targets=targets, **options).run
    batch = torch.from_numpy(images[:4])
    (codes,) = load(run).encode(batch)
    assert codes.shape == (4, 4, 6) and load(run).decode((codes,)).shape == batch.shape
    longer = train_vqvae(out=run, resume="auto", images=images, targets=targets, steps=14)
    assert longer.steps == 14
    with pytest.raises(UsageError, match="--network strided contradicts the run, which has residual"):
        train_vqvae(out=run, resume="auto", images=images, targets=targets, steps=15, network="strided")


def test_the_arithmetic_is_said_at_the_start_and_the_speed_where_steps_were_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = shapes()
    counted, timed = Lines(), Lines()
    train_vqvae(out=tmp_path / "a", images=images, targets=targets, reporter=counted, **TINY_VQVAE)
    (model,) = build(
        {name: value for name, value in TINY_VQVAE.items() if name in option_names(VQVAEConfig)},
        VQVAEConfig,
        derived={"channels": 1, "height": 8, "width": 12},
    )
    gmac = multiply_adds(model) / 1e9
    assert f"{gmac:.3g} GMAC (multiply-adds) per image, forward\n" in counted.text
    monkeypatch.setattr("pipeline.training.launch.steps_within", lambda trainer, seconds: Timed(3, 1234.5))
    options = {name: value for name, value in TINY_VQVAE.items() if name != "steps"}
    train_vqvae(out=tmp_path / "b", images=images, targets=targets, reporter=timed, max_minutes=1.0, **options)
    assert (
        f"{gmac:.3g} GMAC (multiply-adds) per image, forward\n" in timed.text
        and "minutes in all, at 1,234 images per second\n" in timed.text
    )


def test_an_adversarial_training_keeps_its_latest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = shapes()
    for objective, kept in (("sharp", 12), ("nmse", 3)):
        values = iter([0.1, 0.2, 0.3, 0.4])
        monkeypatch.setattr(Trainer, "evaluate", lambda self, values=values: Metrics({"nmse": next(values)}))
        options = {**TINY_VQVAE, "objective": objective, "evaluations": 4}
        run = train_vqvae(out=f"run-{objective}", images=images, targets=targets, **options).run
        assert json.loads((run / "vqvae" / "validation.json").read_text())["step"] == kept


def test_the_variance_of_the_data_is_that_of_the_training_part_alone(trained: Path) -> None:
    images, _ = shapes()
    train = load_split(trained / "vqvae" / "split.safetensors").train
    variance = float(load(trained).vqvae.network.data_variance)
    assert len(train) < len(images) and variance == pytest.approx((images[train] / 255).var(), rel=1e-6)
    assert variance != pytest.approx((images / 255).var(), rel=1e-4)


def test_latents_are_standard_normal_numbers_of_seed_and_index_times_the_temperature(tmp_path: Path) -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **tiny_vqvae("gaussian", steps=1))
    [drawn] = generate("run", 3, seed=4, temperature=0.5).codes
    expected = np.stack([stream(4, Purpose.LATENTS, index).standard_normal((4, 2, 3)) for index in range(3)])
    np.testing.assert_allclose(drawn.numpy(), 0.5 * expected, rtol=1e-6)
    sampler = load("run").sampler()
    assert sampler.bytes_per_image == 96 + 24 * 4 + 8, "of pixels, of numbers in float32, of a class"
    assert sampler.drawing_bytes() == 2 * 24 * 8 + 12 * 96
