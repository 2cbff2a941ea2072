"""One step of the loop, and one evaluation, against what they are defined to be, by hand."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import processes
from pipeline.config.data import DataConfig
from pipeline.config.training import TrainingConfig, learning_rate
from pipeline.data.codes.maps import CodeMaps
from pipeline.data.image_set import from_array
from pipeline.data.splits import Split
from pipeline.randomness import Purpose, batch_indices, number
from pipeline.reporting import Silent
from pipeline.runs.validation import Metrics
from pipeline.training.inputs import batches
from pipeline.training.inputs.batches import CodeBatches, ImageBatches
from pipeline.training.loop.log import Log
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.bottlenecks import VectorQuantizer
from stage2_prior import PriorConfig, PriorTask, make_prior
from tests.tiny import shapes

IMAGES, TARGETS = shapes()
PARTS = Split(np.arange(29), np.arange(29, 40), np.arange(0))  # 11 for validation: no multiple of anything
STEPS = 100
AnyTrainer = Trainer[Any, Any]


def a_trainer(task: Any, data: Any, folder: Path, options: dict[str, Any]) -> AnyTrainer:
    usual = {"steps": STEPS, "batch_size": 8, "precision": "float32", "seed": 5}
    config = TrainingConfig(**{**usual, **options})
    trainer = Trainer(task, data, config, processes.start(), folder, Silent(), preview=lambda _: None)
    trainer.module.train()
    return trainer


def of_images(folder: Path, model: dict[str, Any] | None = None, **options: Any) -> AnyTrainer:
    """A trainer of a tiny VQ-VAE."""
    sizes = {"channels": 1, "height": 8, "width": 12, "hidden": 8, "residual_channels": 4, "num_codes": 12}
    config = VQVAEConfig(**{**sizes, "code_dim": 4, **(model or {})})
    data = ImageBatches(from_array(IMAGES, TARGETS, (), DataConfig()), PARTS, False, 5)
    return a_trainer(VQVAETask(VQVAE(config, 0.08)), data, folder, options)


def of_codes(folder: Path, **options: Any) -> AnyTrainer:
    """A trainer of a tiny prior with dropout."""
    config = PriorConfig(height=2, width=3, num_codes=7, hidden=8, layers=2, head=8, dropout=0.5)
    train, validation = (
        CodeMaps((torch.randint(7, (n, 2, 3), generator=torch.Generator().manual_seed(n)),), None, ()) for n in (29, 11)
    )
    return a_trainer(PriorTask(make_prior(config)), CodeBatches(train, validation, 0, 7, 5), folder, options)


def test_what_was_measured_is_written_before_each_evaluation_and_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is cut off and resumed there is a line for every step."""
    monkeypatch.setattr("pipeline.training.loop.trainer.LOGGED_LINES", 1)
    trainer = of_images(tmp_path, steps=12, evaluations=3, checkpoints=2)
    trainer.start()
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 6, 8, 12]
    assert [line["step"] for line in lines if "validation_nmse" in line] == [4, 8, 12]


def gradients_of(trainer: AnyTrainer) -> dict[str, Tensor]:
    """The gradients that each later step of the optimizer takes, by name; filled in when it does."""
    seen: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        named = trainer.module.named_parameters()
        seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.state.optimizer.register_step_pre_hook(keep)
    return seen


def network_of(trainer: AnyTrainer) -> VQVAE:
    assert isinstance(trainer.task, VQVAETask)
    return trainer.task.network


def quantizer_of(trainer: AnyTrainer) -> VectorQuantizer:
    [bottleneck] = network_of(trainer).levels.in_order()
    assert isinstance(bottleneck, VectorQuantizer)
    return bottleneck


def observe(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, see: Callable[..., None]) -> None:
    """Let `see` have the arguments of each call of a method before it does its work."""
    method = getattr(owner, name)

    def observed(*arguments: Any) -> Any:
        see(*arguments)
        return method(*arguments)

    monkeypatch.setattr(owner, name, observed)


def norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_the_gradient_is_clipped_by_its_norm_and_the_discriminators_by_its_own(tmp_path: Path, clip: float) -> None:
    trainer = of_images(tmp_path, {"objective": "sharp", "adversarial_weight": 0.5}, clip=clip)
    batch = trainer.training_batch(trainer._batch_indices(50))
    names, parameters = zip(*trainer.module.named_parameters(), strict=True)
    plain = dict(zip(names, torch.autograd.grad(trainer.module(batch, 0.5).loss, parameters), strict=True))
    seen = gradients_of(trainer)
    metrics = trainer.train_step(50).metrics
    for prefix in ("network.", "sharp.discriminator."):
        group = [name for name in names if name.startswith(prefix)]
        length = norm([plain[name] for name in group])
        assert 1e-2 < length < 1e2, "above one clip and below the other"
        for name in group:
            torch.testing.assert_close(seen[name], plain[name] * min(1.0, clip / length), rtol=1e-4, atol=1e-8)
    own = norm([gradient for name, gradient in plain.items() if name.startswith("network.")])
    assert float(metrics["gradient_norm"]) == pytest.approx(own, rel=1e-4), "as it was before it was clipped"


@pytest.mark.parametrize(
    ("model", "spared"),
    [
        ({"codebook_rule": "gradient"}, {"codebook"}),
        ({"codebook_rule": "gradient", "levels": 2, "level_kind": "residual"}, {"codebook"}),
        ({"codebook_rule": "simvq"}, {"projection"}),
        ({"bottleneck": "gumbel"}, {"codebook"}),
        ({"codebook_rule": "ema", "likelihood": "gaussian"}, {"slow_log_scale"}),
    ],
)
def test_weights_decay_but_neither_biases_nor_codebooks(
    tmp_path: Path, model: dict[str, Any], spared: set[str]
) -> None:
    trainer = of_images(tmp_path, model, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in trainer.module.named_parameters()}
    for parameter in trainer.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in trainer.state.optimizer.param_groups:
        group["lr"] = 0.1
    trainer.state.optimizer.step()
    last_names = {name.rpartition(".")[2] for name in before}
    assert spared < last_names and last_names - spared <= {"weight", "bias", "log_precision"}
    for name, parameter in trainer.module.named_parameters():
        factor = 1 - 0.1 * 0.5 if name.endswith(".weight") else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0)


def test_steps_are_those_of_adamw(tmp_path: Path) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in float64; each step's gradient is its own alone."""
    trainer = of_images(tmp_path, {"bottleneck": "none"}, weight_decay=0.3, beta2=0.8, learning_rate=0.01, clip=1e9)
    weight = network_of(trainer).decoder.get_parameter("0.weight")
    expected = weight.detach().double()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(3):
        batch = trainer.training_batch(trainer._batch_indices(step))
        [gradient] = torch.autograd.grad(trainer.module(batch, step / STEPS).loss, [weight])
        mean, square = 0.9 * mean + 0.1 * gradient.double(), 0.8 * square + 0.2 * gradient.double().square()
        rate = learning_rate(trainer.config, step, STEPS)
        root = (square / (1 - 0.8 ** (step + 1))).sqrt() + 1e-8
        expected = (1 - rate * 0.3) * expected - rate * mean / (1 - 0.9 ** (step + 1)) / root
        trainer.train_step(step)
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_a_step_is_taken_at_the_rate_and_the_progress_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = of_images(tmp_path, learning_rate=0.5, warmup_steps=4)
    rates: list[float] = []
    progress: list[float] = []
    optimizer = trainer.state.optimizer
    optimizer.register_step_pre_hook(lambda *_: rates.extend({float(g["lr"]) for g in optimizer.param_groups}))
    trainer.module.register_forward_pre_hook(lambda _, inputs: progress.append(inputs[1]))
    observe(monkeypatch, trainer.task, "update", lambda _statistics, done, _noise: progress.append(done))
    chosen = [0, 1, 2, 3, 4, 52, 99]
    for step in chosen:
        trainer.train_step(step)
    falling = [0.25 * (1 + math.cos(math.pi * done / 96)) for done in (0, 48, 95)]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, *falling], rel=1e-12)
    assert progress == pytest.approx([step / 100 for step in chosen for _ in range(2)], rel=1e-12)


@pytest.mark.parametrize("total", [9, 25, 100])
def test_the_warm_up_lasts_a_tenth_of_a_short_run(total: int) -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=7)
    warm = min(7, total // 10)
    rising = [(step + 1) / warm for step in range(warm)]
    falling = [0.5 * (1 + math.cos(math.pi * step / (total - warm))) for step in range(total - warm)]
    assert [learning_rate(config, step, total) for step in range(total)] == pytest.approx(rising + falling, rel=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_codebook_follows_the_sums_over_the_whole_batch(tmp_path: Path, parts: int) -> None:
    options = {"codebook_rule": "ema", "ema_decay": 0.9, "revival_threshold": 0.0}
    trainer = of_images(tmp_path, options, micro_batches=parts)
    network, bottleneck = network_of(trainer), quantizer_of(trainer)
    batch = trainer.training_batch(trainer._batch_indices(3))
    [codes] = network.encode(batch)
    with torch.no_grad():
        outputs = network.levels.entry(network.encoder(network.normalise(batch))).movedim(1, -1).double().numpy()
    before = {name: value.double().numpy().copy() for name, value in bottleneck.named_buffers()}
    trainer.train_step(3)
    counts = np.bincount(codes.flatten().numpy(), minlength=12)
    sums = np.stack([outputs[codes.numpy() == code].sum(0) for code in range(12)])
    assert counts.sum() == 8 * 6
    np.testing.assert_allclose(bottleneck.mean_counts.numpy(), 0.9 * before["mean_counts"] + 0.1 * counts, rtol=1e-6)
    np.testing.assert_allclose(
        bottleneck.mean_sums.numpy(), 0.9 * before["mean_sums"] + 0.1 * sums, rtol=1e-4, atol=1e-6
    )


def test_samples_of_all_micro_batches_may_revive_a_code(tmp_path: Path) -> None:
    trainer = of_images(tmp_path, {"codebook_rule": "gradient"}, micro_batches=4)
    [statistics] = trainer.train_step(0).statistics
    assert len(statistics.samples) == 8 * 6 and len(set(map(tuple, statistics.samples.tolist()))) == 8 * 6


def test_metrics_of_a_step_are_means_over_its_micro_batches(tmp_path: Path) -> None:
    trainer = of_images(tmp_path, {"revival_threshold": 0.0}, micro_batches=4)
    whole = trainer.training_batch(trainer._batch_indices(6))
    output = trainer.module(whole, 0.06)
    metrics = trainer.train_step(6).metrics
    torch.testing.assert_close(metrics["loss"], output.loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(metrics["nmse"], output.metrics["nmse"], rtol=1e-5, atol=0)


def test_each_micro_batch_has_its_part_of_the_batch_and_noise_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = of_images(tmp_path, micro_batches=4)
    seeds: list[int] = []
    seen: list[Tensor] = []
    updates: list[int] = []

    def before(_module: nn.Module, inputs: tuple[Tensor, float]) -> None:
        seeds.append(torch.initial_seed())
        seen.append(inputs[0])

    trainer.module.register_forward_pre_hook(before)
    observe(monkeypatch, trainer.task, "update", lambda _s, _done, noise: updates.append(noise.initial_seed()))
    trainer.train_step(6)
    assert seeds == [number(5, Purpose.TRAINING_NOISE, 6, part) for part in range(4)]
    assert updates == [number(5, Purpose.CODEBOOK, 7)]
    expected = IMAGES[PARTS.train[batch_indices(5, 6, 8, 29).items]]
    assert [len(part) for part in seen] == [2, 2, 2, 2] and np.array_equal(torch.cat(seen).numpy(), expected)


def test_a_training_starts_from_its_first_four_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = of_images(tmp_path)
    given: list[tuple[list[Tensor], int]] = []
    observe(monkeypatch, trainer.task, "initialise", lambda chosen, noise: given.append((chosen, noise.initial_seed())))
    trainer.start()
    [(chosen, seed)] = given
    expected = [IMAGES[PARTS.train[batch_indices(5, step, 8, 29).items]] for step in range(4)]
    assert len(chosen) == 4 and seed == number(5, Purpose.CODEBOOK)
    assert all(np.array_equal(one.numpy(), other) for one, other in zip(chosen, expected, strict=True))


def test_a_revived_code_has_no_moments_left_and_the_others_keep_theirs(tmp_path: Path) -> None:
    trainer = of_images(tmp_path, {"codebook_rule": "gradient", "ema_decay": 0.999})
    bottleneck = quantizer_of(trainer)
    trainer.start()
    trainer.train_step(0)
    moments = trainer.state.optimizer.state[bottleneck.codebook]
    used = moments["exp_avg"].abs().sum(1).nonzero().flatten().tolist()
    dead, alive = used[:2], used[2:]
    assert alive
    bottleneck.mean_counts[dead] = 0.0
    before = bottleneck.codebook.detach().clone()
    trainer.train_step(1)
    for name in ("exp_avg", "exp_avg_sq"):
        sizes = moments[name].abs().sum(1)
        assert (sizes[dead] == 0).all() and (sizes[alive] > 0).all()
    moved = (bottleneck.codebook.detach() - before).norm(dim=1)
    assert moved[dead].min() > moved[alive].max(), "an optimizer's step is small"


def test_the_average_has_the_buffers_of_the_step_that_it_follows(tmp_path: Path) -> None:
    trainer = of_images(tmp_path, {"codebook_rule": "ema"}, average_decay=0.9)
    for step in range(3):
        trainer.train_step(step)
    assert trainer.state.average is not None
    averaged = dict(trainer.state.average.module.named_buffers())
    assert "network.levels.bottlenecks.0.codebook" in averaged
    assert all(torch.equal(averaged[name], own) for name, own in trainer.module.named_buffers())


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("make", [of_images, of_codes])
def test_an_evaluation_is_without_dropout_and_training_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, decay: float
) -> None:
    trainer = make(tmp_path, average_decay=decay)
    modes: list[bool] = []
    previews: list[bool] = []
    evaluated = trainer.state.evaluated
    observe(monkeypatch, evaluated, "evaluate", lambda _batch: modes.append(evaluated.training))
    trainer.preview = lambda module: previews.append(module.training)
    assert trainer.evaluate() == trainer.evaluate(), "nothing is random"
    assert modes and not any(modes)
    assert all(module.training for module in trainer.module.modules())
    trainer.show_preview()
    assert previews == [False] and all(module.training for module in trainer.module.modules())


def test_an_evaluation_is_that_of_all_validation_images_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = of_images(tmp_path, {"likelihood": "gaussian"})
    whole = torch.from_numpy(IMAGES[29:])
    trainer.module.eval()
    reconstruction = network_of(trainer)(whole).reconstruction.detach().double().numpy()
    error = ((reconstruction - (whole.double().numpy() / 255 - 0.5)) ** 2).mean()
    expected = trainer.task.summarise(trainer.task.evaluate(whole))
    monkeypatch.setattr(batches, "MOST_EVALUATED", 4)  # 4 + 4 + 3
    measured = trainer.evaluate()
    assert measured.values["nmse"] == pytest.approx(error / 0.08, rel=1e-5)
    assert measured.values == pytest.approx(expected.values, rel=1e-6)
    assert measured.levels[0] == pytest.approx(expected.levels[0], rel=1e-6)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("at_a_time", [1, 4, 256])
def test_processes_divide_the_validation_part_and_nothing_is_seen_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, at_a_time: int
) -> None:
    monkeypatch.setattr(batches, "MOST_EVALUATED", at_a_time)
    images, codes = of_images(tmp_path).data, of_codes(tmp_path).data
    assert isinstance(codes, CodeBatches)
    cpu = torch.device("cpu")
    shown = [b for rank in range(processes) for b in images.validation_batches(rank, processes, cpu)]
    assert np.array_equal(torch.cat(shown).numpy(), IMAGES[29:]) and max(map(len, shown)) <= at_a_time
    maps = [b.codes for rank in range(processes) for b in codes.validation_batches(rank, processes, cpu)]
    assert isinstance(codes.validation, CodeMaps)
    assert torch.equal(torch.cat(maps), codes.validation.levels[0])


def test_of_equally_good_weights_the_first_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = of_images(tmp_path)
    values = iter([0.5, 0.5, 0.4, 0.4, 0.6])
    monkeypatch.setattr(trainer, "evaluate", lambda: Metrics({"nmse": next(values)}))
    log = Log(trainer.accelerator, trainer.reporter, tmp_path, trainer.config, trainer.state.record)
    kept = []
    for step in range(1, 6):
        trainer.state.record.step = step
        trainer._evaluate_and_keep(log)
        kept.append((trainer.state.record.best_step, [path.name for path in trainer.checkpoints.iterdir()]))
    assert kept == [(best, [f"best-{best:09d}"]) for best in (1, 1, 3, 3, 3)]


def test_training_leaves_the_callers_random_numbers_as_they_were(tmp_path: Path) -> None:
    trainer = of_images(tmp_path, steps=2)
    before = torch.get_rng_state()
    trainer.run()
    assert trainer.state.record.step == 2 and torch.equal(torch.get_rng_state(), before)
