"""What the training loop is given: loss and metrics, evaluation, bits/dim, and groups of parameters."""

import math
import zlib
from typing import Any, Literal

import numpy as np
import pytest
import torch

from stage1_vqvae import VQVAE, DecoderTask, ObjectiveConfig, VQVAEConfig, VQVAETask
from stage1_vqvae.noise import image_noise
from stage1_vqvae.perceptual import focal_frequency

Kind = Literal["gaussian", "discretized-logistic"]


def config(**options: Any) -> VQVAEConfig:
    sizes = {"channels": 3, "height": 8, "width": 8, "hidden": 8, "residual_channels": 4, "num_codes": 12}
    return VQVAEConfig(**{**sizes, **options})


def random_images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8)


def test_the_reconstruction_loss_is_the_error_over_the_datas_variance() -> None:
    images = random_images(3)
    task = VQVAETask(VQVAE(config(), data_variance=0.04)).eval()
    output, reconstruction = task(images), task.network(images).reconstruction
    error = reconstruction.detach().double().numpy() - (images.double().numpy() / 255 - 0.5)
    assert float(output.metrics["nmse"]) == pytest.approx((error**2).mean() / 0.04, rel=1e-4)
    expected = output.metrics["nmse"] + output.metrics["bottleneck_loss"]
    torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("levels", [1, 3])
def test_evaluation_adds_up_over_batches(levels: int) -> None:
    network = VQVAE(config(levels=levels, level_kind="residual"), data_variance=0.04)
    task, images = VQVAETask(network).eval(), random_images(7)
    whole = task.summarise(task.evaluate(images))
    parts = [task.evaluate(images[:3]), task.evaluate(images[3:]), task.evaluate(images[:0])]
    summed = task.summarise({name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in parts[0]})
    assert summed.values == pytest.approx(whole.values, rel=1e-5)
    assert len(summed.levels) == len(whole.levels) == levels
    for one, other in zip(summed.levels, whole.levels, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    output = network(images)
    mse = float(((output.reconstruction.detach().double() - (images.double() / 255 - 0.5)) ** 2).mean())
    assert whole.values["nmse"] == pytest.approx(mse / 0.04, rel=1e-4)
    assert whole.values["psnr"] == pytest.approx(10 * np.log10(1 / mse), rel=1e-4)
    for level, tensor in zip(whole.levels, network.encode(images), strict=True):
        codes = tensor.numpy()
        frequencies = np.bincount(codes.ravel()) / codes.size
        entropy = -sum(p * np.log(p) for p in frequencies if p)
        assert level["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
        assert level["codebook_usage"] == pytest.approx(len(np.unique(codes)) / 12)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"perplexity"}),
        ({"levels": 2}, {"perplexity/0", "perplexity/1"}),
        ({"levels": 2, "bottleneck": "gumbel"}, {"perplexity/0", "perplexity/1", "kl/0", "kl/1"}),
        ({"bottleneck": "gaussian"}, {"kl"}),
        ({"bottleneck": "mmd"}, {"mmd"}),
        ({"bottleneck": "none"}, set()),
        (
            {"objective": "sharp"},
            {"perplexity", "discriminator_loss", "discriminator_accuracy", "adversarial_ramp"},
        ),
        (
            {"objective": "sharp", "adversarial_weight": 0, "features": "kmeans", "frequency_weight": 0.1},
            {"perplexity", "feature_distance", "frequency_distance"},
        ),
    ],
)
def test_metrics_of_a_level_have_its_number_where_there_are_several(options: dict[str, Any], names: set[str]) -> None:
    task = VQVAETask(VQVAE(config(**options))).train()
    output = task(random_images(4), 0.5)
    assert output.metrics.keys() == {"nmse", "bottleneck_loss"} | names
    assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
    perplexities = [value for name, value in output.metrics.items() if name.startswith("perplexity")]
    for own, perplexity in zip(output.statistics, perplexities, strict=True):
        use = own.sums[:, -1].double() / own.sums[:, -1].sum()
        assert float(perplexity) == pytest.approx(float((-(use * use.clamp(min=1e-12).log()).sum()).exp()))


def test_the_summary_of_a_continuous_bottleneck_is_in_its_level() -> None:
    task = VQVAETask(VQVAE(config(bottleneck="gaussian", likelihood="gaussian"))).eval()
    values, (level,) = task.summarise(task.evaluate(random_images(5)))
    assert values.keys() == {"nmse", "psnr", "bits_per_dim"}
    assert level.keys() == {"active_units", "unit_variance", "kl_per_unit", "bits_per_image"}


def test_noise_belongs_to_the_image_and_not_to_its_batch() -> None:
    images = random_images(5)
    noise = image_noise(images, (4, 2, 2))
    assert torch.equal(image_noise(images[3:], (4, 2, 2)), noise[3:])
    assert len({float(part.sum()) for part in noise}) == 5
    many = image_noise(random_images(400), (4, 4, 4))
    assert abs(float(many.mean())) < 0.03 and float(many.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "discretized-logistic"])
@pytest.mark.parametrize("bottleneck", ["vq", "gaussian"])
def test_bits_per_dim_are_those_of_pixels_and_codes(kind: Kind, bottleneck: Literal["vq", "gaussian"]) -> None:
    network = VQVAE(config(bottleneck=bottleneck, likelihood=kind), 0.08).double().eval()
    task, images = VQVAETask(network).eval(), random_images(6)
    result = task.summarise(task.evaluate(images)).values
    assert network.likelihood is not None
    with torch.no_grad():
        features = network.encoder(network.normalise(images))
        sample = network.levels.sample(features, image_noise(images, (network.levels.code_dim, 2, 2)).double())
        pixels = float(network.likelihood.nats(network.decoder(sample), images).mean()) / math.log(2)
        outputs = network.levels.entry(features)
    if bottleneck == "vq":
        bits = 4 * math.log2(12)
    else:
        mean, log_variance = outputs.chunk(2, 1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
        bits = float(kl.sum()) / 6 / math.log(2)
    assert result["bits_per_dim"] == pytest.approx(pixels + bits / 192)


def test_bits_per_dim_add_the_bits_of_all_levels() -> None:
    network = VQVAE(config(levels=2, likelihood="gaussian"), 0.08).eval()
    task, images = VQVAETask(network).eval(), random_images(6)
    sums = task.evaluate(images)
    assert {sums[name].dtype for name in ("squared_error", "images", "pixel_nats")} == {torch.float64}, "of many images"
    values, levels = task.summarise(sums)
    assert [level["bits_per_image"] for level in levels] == pytest.approx([math.log2(12), 4 * math.log2(12)])
    pixels = float(sums["pixel_nats"]) / (6 * 192) / math.log(2)
    assert values["bits_per_dim"] == pytest.approx(pixels + 5 * math.log2(12) / 192)


def test_without_a_likelihood_or_a_distribution_of_codes_there_are_no_bits_per_dim() -> None:
    for options in ({}, {"bottleneck": "none", "likelihood": "gaussian"}, {"bottleneck": "mmd"}):
        task = VQVAETask(VQVAE(config(**options))).eval()
        assert "bits_per_dim" not in task.summarise(task.evaluate(random_images(6))).values


def test_the_discriminator_takes_part_in_training_alone() -> None:
    task = VQVAETask(VQVAE(config(objective="sharp")))
    images = random_images(6)
    assert "discriminator_loss" in task.train()(images, 0.5).metrics
    assert "discriminator_loss" not in task.eval()(images, 0.5).metrics
    task.train()(images, 0.0).loss.backward()
    early = [p.grad.clone() for p in task.network.decoder.parameters() if p.grad is not None]
    task.zero_grad()
    task(images, 1.0).loss.backward()
    assert any(
        not torch.equal(p.grad, e)
        for p, e in zip(task.network.decoder.parameters(), early, strict=True)
        if p.grad is not None
    )


def test_the_published_network_is_without_the_discriminator_and_built_as_without_one() -> None:
    torch.manual_seed(3)
    with_one = VQVAETask(VQVAE(config(objective="sharp", likelihood="gaussian")))
    torch.manual_seed(3)
    without = VQVAETask(VQVAE(config(likelihood="gaussian")))
    published, other = with_one.network.state_dict(), without.network.state_dict()
    assert published.keys() == other.keys() and all(torch.equal(published[name], other[name]) for name in other)
    assert with_one.state_dict().keys() > {f"network.{name}" for name in published}
    assert without.sharp is None and without.discriminator_parameters == []


def test_the_discriminators_learning_rate_is_that_of_its_own_training() -> None:
    network = VQVAE(config(objective="sharp", discriminator_rate=0.5))
    assert VQVAETask(network).discriminator_rate == 0.5
    assert DecoderTask(network, ObjectiveConfig(discriminator_rate=2.0)).discriminator_rate == 2


@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_codebooks_and_scales_have_no_weight_decay(rule: Literal["ema", "gradient"]) -> None:
    network = VQVAE(config(codebook_rule=rule, likelihood="gaussian", levels=2))
    task = VQVAETask(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    codebooks = [] if rule == "ema" else [f"levels.bottlenecks.{level}.codebook" for level in range(2)]
    assert [names[id(parameter)] for parameter in task.no_weight_decay] == [*codebooks, "likelihood.slow_log_scale"]


def test_the_metric_of_selection_is_the_error_unless_the_latest_weights_are_kept() -> None:
    assert VQVAETask(VQVAE(config())).selection_metric == "nmse"
    assert VQVAETask(VQVAE(config(objective="sharp"))).selection_metric is None
    assert VQVAETask(VQVAE(config(bottleneck="gumbel"))).selection_metric is None


def test_only_discrete_bottlenecks_are_updated() -> None:
    generator = torch.Generator().manual_seed(0)
    task = VQVAETask(VQVAE(config(bottleneck="gaussian")))
    assert task.update(task(random_images(4)).statistics, 0.5, generator) == []
    task = VQVAETask(VQVAE(config(levels=2)))
    before = {name: value.clone() for name, value in task.network.levels.bottlenecks.named_buffers()}
    task.update(task(random_images(4)).statistics, 0.5, generator)
    after = dict(task.network.levels.bottlenecks.named_buffers())
    assert all(not torch.equal(after[f"{level}.mean_counts"], before[f"{level}.mean_counts"]) for level in range(2))


def test_the_noise_of_an_image_is_seeded_by_the_checksum_of_its_pixels() -> None:
    """Bits per dimension of a model stay comparable between versions."""
    image = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    assert zlib.crc32(bytes(range(192))) == 2289481440
    expected = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(2289481440))
    assert torch.equal(image_noise(image, (4, 2, 2))[0], expected)


@pytest.mark.parametrize(("progress", "ramp"), [(0.2, 0.0), (0.34, 0.4), (0.5, 1.0)])
def test_the_loss_is_the_sum_of_all_terms_with_their_weights(progress: float, ramp: float) -> None:
    options = {
        "objective": "sharp",
        "adversarial_weight": 0.3,
        "adversarial_start": 0.3,
        "likelihood": "gaussian",
        "levels": 2,
    }
    options |= {"feature_matching": 0.2, "frequency_weight": 0.7}
    task, images = VQVAETask(VQVAE(config(**options), data_variance=0.04)).train(), random_images(4)
    output = task(images, progress)
    reconstructed, target = task.network(images, progress), images.float() / 255 - 0.5
    assert task.sharp is not None and task.sharp.discriminator is not None and task.network.likelihood is not None
    losses = task.sharp.discriminator.losses(target, reconstructed.reconstruction)
    terms = [task.network.likelihood(reconstructed.reconstruction, target), losses.discriminator]
    terms += [level.loss for level in reconstructed.levels]
    terms += [0.7 * focal_frequency(reconstructed.reconstruction, target) / task.network.data_variance]
    adversarial = 0.3 * losses.generator + 0.2 * losses.matching
    expected = sum(float(term.detach()) for term in terms) + ramp * float(adversarial.detach())
    assert len(terms) == 5 and abs(float(losses.generator.detach())) > 1e-3 and float(losses.matching.detach()) > 1e-4
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(output.metrics["bottleneck_loss"]) == pytest.approx(float(torch.stack(terms[2:4]).sum().detach()))


def test_each_level_is_updated_with_statistics_of_its_own() -> None:
    task = VQVAETask(VQVAE(config(levels=2, level_kind="residual", ema_decay=0.5, revival_threshold=0.0)))
    output = task(random_images(5))
    first, second = (own.sums[:, -1].clone() for own in output.statistics)
    assert not torch.equal(first, second)
    task.update(output.statistics, 0.5, torch.Generator().manual_seed(0))
    for bottleneck, counts in zip(task.network.levels.bottlenecks, (first, second), strict=True):
        torch.testing.assert_close(bottleneck.get_buffer("mean_counts"), 0.5 + 0.5 * counts)
