"""The bottlenecks beside the vector quantizer, against independent computations; and what all of them hold to."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.bottlenecks import (
    BOTTLENECKS,
    DiscreteBottleneck,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    Statistics,
    VectorQuantizer,
)
from stage1_vqvae.bottlenecks.gumbel import FINAL_TEMPERATURE, kl_to_uniform, temperature

Name = Literal["vq", "gumbel", "fsq", "gaussian", "mmd", "none"]
every_bottleneck = pytest.mark.parametrize("name", list(BOTTLENECKS))
every_discrete_one = pytest.mark.parametrize("name", ["vq", "gumbel", "fsq"])

GENERATOR = torch.Generator().manual_seed(0)


def config(name: Name, num_codes: int = 12, **options: Any) -> VQVAEConfig:
    return VQVAEConfig(bottleneck=name, num_codes=num_codes, code_dim=3, channels=1, height=8, width=8, **options)


def finite(num_codes: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(config("fsq", num_codes))


@pytest.mark.parametrize(
    ("num_codes", "levels"),
    [
        (512, (8, 8, 8)),
        (1000, (8, 5, 5, 5)),
        (64, (8, 8)),
        (16384, (8, 8, 8, 8, 4)),
        (6, (6,)),
        (16, (4, 4)),
        (1024, (8, 8, 4, 4)),
        (14, (7, 2)),
        (2, (2,)),
    ],
)
def test_levels_multiply_to_the_number_of_codes(num_codes: int, levels: tuple[int, ...]) -> None:
    assert config("fsq", num_codes).fsq_levels == levels


def test_a_number_of_codes_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="--num-codes 509 is no product of 2 to 8"):
        config("fsq", 509)


@given(st.sampled_from([2, 6, 12, 14, 35, 64, 1000]))
def test_codes_and_vectors_are_one_to_one(num_codes: int) -> None:
    layer = finite(num_codes)
    codes = torch.arange(num_codes).reshape(1, 1, -1)
    vectors = layer.decode(codes)
    assert len({tuple(v) for v in vectors[0, :, 0].T.tolist()}) == num_codes
    assert float(vectors.min()) >= -1 and float(vectors.max()) <= 1
    expected = np.array(np.unravel_index(np.arange(num_codes), tuple(layer.levels.flatten().tolist()[::-1])))[::-1]
    digits = (vectors * layer.centre + layer.centre)[0, :, 0].numpy()
    np.testing.assert_allclose(digits, expected, atol=1e-5)
    # An output that the squashing takes to the vector has the code.
    reach = (layer.levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(layer.levels % 2 == 0, 0.5, 0.0)
    shift = torch.where(layer.levels > 2, (offset / reach).atanh(), 0.0)
    outputs = ((vectors * layer.centre + offset) / reach).atanh() - shift
    assert torch.equal(layer.encode(outputs), codes)


@pytest.mark.parametrize("num_codes", [2, 3, 4, 5, 6, 7, 8])
def test_every_level_learns_from_the_start(num_codes: int) -> None:
    layer = finite(num_codes)
    outputs = torch.zeros(1, 1, 1, 1, requires_grad=True)
    (layer(outputs, 0.0).quantized * layer.centre).sum().backward()
    assert outputs.grad is not None and float(outputs.grad) > 0.4
    codes = layer.encode(torch.randn(1, 1, 1, 2000))
    counts = np.bincount(codes.flatten().numpy(), minlength=num_codes)
    assert counts.min() > 10 and counts.max() < 1200


@pytest.mark.parametrize("num_codes", [2, 5, 8, 35])
def test_every_level_is_reached_and_no_other(num_codes: int) -> None:
    layer = finite(num_codes)
    dim = layer.inputs
    outputs = torch.linspace(-30, 30, 4001).expand(dim, -1)[None, :, None]
    digits = layer.decode(layer.encode(outputs))[0, :, 0] * layer.centre[:, 0] + layer.centre[:, 0]
    for row, levels in zip(digits, layer.levels.flatten().tolist(), strict=True):
        assert row.round().long().unique().tolist() == list(range(levels))


def test_the_gradient_of_finite_scalars_is_that_of_the_squashing() -> None:
    layer = finite(35)
    outputs = torch.randn(2, 2, 3, 4, requires_grad=True)
    weights = torch.randn(2, 2, 3, 4)
    (layer(outputs, 0.0).quantized * weights).sum().backward()
    reach = (layer.levels - 1) * (1 + 1e-3) / 2
    expected = weights * reach / layer.centre * (1 - outputs.detach().tanh() ** 2)  # 5 and 7 levels: no offset
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, expected)


def test_kl_to_uniform_is_that_of_torch() -> None:
    logits = 3 * torch.randn(24, 12)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(24, 12)))
    torch.testing.assert_close(kl_to_uniform(logits), expected)


def test_the_temperature_falls_from_one_to_a_sixteenth() -> None:
    values = [temperature(progress) for progress in np.linspace(0, 1, 11)]
    assert values[0] == 1 and values[-1] == FINAL_TEMPERATURE == 1 / 16
    assert values == sorted(values, reverse=True)
    assert temperature(0.5) == pytest.approx((1 + 1 / 16) / 2)
    half_a_cosine = [(1 + math.cos(math.pi * progress)) / 2 for progress in (0.2, 0.7)]
    assert [temperature(0.2), temperature(0.7)] == pytest.approx([(1 + 15 * part) / 16 for part in half_a_cosine])


def test_the_kl_term_warms_up_from_nothing() -> None:
    layer, outputs = GumbelQuantizer(config("gumbel", kl_weight=0.5)), torch.randn(2, 3, 3, 4)
    logits = layer.logits(outputs.movedim(1, -1).reshape(24, 3)).detach()
    kl = float(kl_to_uniform(logits).sum()) / 2 / 64  # nats per image, over its values
    assert [float(layer(outputs, progress).loss.detach()) for progress in (0.0, 0.05, 0.1, 1.0)] == pytest.approx(
        [0, 0.25 * kl, 0.5 * kl, 0.5 * kl]
    )


def test_relaxed_samples_have_the_marginals_of_the_logits() -> None:
    layer = GumbelQuantizer(config("gumbel", 4)).train()
    layer.codebook.data = F.one_hot(torch.arange(4)).float()[:, :3]  # the mixture's weights can be read off
    layer.log_precision.data += math.log(1.5)
    outputs = torch.tensor([0.4, 1.1, -0.3])
    logits = -1.5 * (layer.codebook.detach() - outputs).square().sum(1)
    mixture = layer(outputs.reshape(1, 3, 1, 1).expand(20_000, 3, 1, 1), 0.3).quantized.detach().flatten(1)
    chosen = torch.cat([mixture, 1 - mixture.sum(1, keepdim=True)], 1).argmax(1)
    expected = 20_000 * logits.softmax(0)
    chi_square = float(((torch.bincount(chosen, minlength=4) - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # 99.9 % for 3 degrees of freedom


def test_relaxed_samples_are_nearly_codes_at_the_end() -> None:
    layer = GumbelQuantizer(config("gumbel", 4)).train()
    layer.codebook.data = torch.eye(4)[:, :3]
    mixture = layer(4 * torch.randn(500, 3, 1, 1), 1.0).quantized.detach()
    assert float((mixture.round() - mixture).abs().mean()) < 0.02


@every_bottleneck
def test_codes_decode_to_what_the_forward_pass_reconstructs(name: Name) -> None:
    model = VQVAE(config(name, hidden=8, residual_channels=4)).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    output = model(images, 1.0)
    assert torch.equal(model.encode(images)[0], output.codes[0])
    if model.config.is_discrete:
        assert int(output.codes[0].min()) >= 0 and int(output.codes[0].max()) < 12
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (model.decode(output.codes).int() - reconstructed.int()).abs().max() <= 1


@every_bottleneck
def test_autocast_changes_no_code(name: Name) -> None:
    layer = BOTTLENECKS[name](config(name)).eval()
    torch.manual_seed(0)
    outputs = torch.randn(4, layer.inputs, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        low, codes = layer(outputs, 0.5), layer.encode(outputs)
    torch.manual_seed(1)
    high = layer(outputs, 0.5)
    assert torch.equal(low.codes, high.codes) and torch.equal(codes, high.codes)
    assert torch.equal(low.quantized, high.quantized) and torch.equal(low.loss, high.loss)


@every_bottleneck
def test_a_bottleneck_measures_the_sums_that_it_names(name: Name) -> None:
    layer = BOTTLENECKS[name](config(name))
    outputs = torch.randn(5, layer.inputs, 2, 2)
    assert tuple(layer.measure(outputs, layer.encode(outputs))) == layer.sum_names


@every_bottleneck
def test_the_loss_reaches_every_weight(name: Name) -> None:
    task = VQVAETask(VQVAE(config(name, hidden=8, residual_channels=4))).train()
    task(torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8), 0.5).loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in task.parameters())


@every_discrete_one
def test_the_mean_vector_is_that_of_the_codes_in_use(name: Name) -> None:
    layer = BOTTLENECKS[name](config(name, ema_decay=0.99))
    assert isinstance(layer, DiscreteBottleneck)
    counts = torch.rand(12, 1)
    layer.update(Statistics(torch.cat([torch.zeros(12, layer.outputs), counts], 1), torch.zeros(0, 3)), 1.0, GENERATOR)
    use = 0.99 * np.ones(12) + 0.01 * counts[:, 0].numpy()
    vectors = layer.decode(torch.arange(12).reshape(1, 12, 1))[0, :, :, 0].detach().double().numpy()
    np.testing.assert_allclose(layer.mean_vector().numpy(), vectors @ use / use.sum(), rtol=1e-5, atol=1e-6)


@every_discrete_one
def test_usage_of_codes_is_that_of_their_histogram(name: Name) -> None:
    model = VQVAE(config(name, hidden=8, residual_channels=4)).eval()
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    task = VQVAETask(model).eval()
    (summary,) = task.summarise(task.evaluate(images)).levels
    frequencies = np.bincount(model.encode(images)[0].numpy().ravel(), minlength=12) / (9 * 4)
    entropy = -sum(p * np.log(p) for p in frequencies if p)
    assert summary["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert summary["perplexity"] == pytest.approx(np.exp(entropy))
    assert summary["dead_codes"] == (frequencies == 0).sum() == round(12 * (1 - summary["codebook_usage"]))
    assert summary["bits_per_image"] == pytest.approx(4 * np.log2(12))


def test_norms_are_those_of_codes_and_encoder_outputs() -> None:
    layer = BOTTLENECKS["vq"](config("vq"))
    outputs = torch.randn(5, 3, 2, 2)
    summary = layer.summarise(layer.measure(outputs, layer.encode(outputs)))
    assert summary["output_norm"] == pytest.approx(float(outputs.square().sum(1).mean().sqrt()))
    assert isinstance(layer, VectorQuantizer)
    assert summary["code_norm"] == pytest.approx(float(layer.codebook.square().sum(1).mean().sqrt()))


def test_unit_codes_are_chosen_by_angle() -> None:
    layer = VectorQuantizer(config("vq", unit_codes=True))
    outputs = torch.randn(4, 3, 2, 2, requires_grad=True)
    cosine = torch.einsum("ndhw,kd->nkhw", F.normalize(outputs, dim=1), F.normalize(layer.codebook, dim=1))
    output = layer(outputs, 0.0)
    assert torch.equal(output.codes, cosine.argmax(1))
    torch.testing.assert_close(output.quantized.norm(dim=1), torch.ones(4, 2, 2))
    assert torch.equal(layer.encode(7 * outputs), output.codes)
    # The loss is the squared chord, 2 - 2 cos, as a mean over dimensions.
    expected = 0.25 * (2 - 2 * cosine.amax(1)).mean() / 3
    torch.testing.assert_close(output.loss, expected)


def test_simvq_moves_all_codes_by_one_linear_map() -> None:
    layer = VectorQuantizer(config("vq", codebook_rule="simvq"))
    layer.initialise([torch.randn(50, 3)], GENERATOR)
    outputs = torch.randn(4, 3, 2, 2)
    output = layer(outputs, 0.0)
    output.loss.backward()
    rows = outputs.movedim(1, -1).reshape(-1, 3).double()
    chosen = layer.codebook.double()[output.codes.flatten()]
    expected = 2 * chosen.T @ (chosen - rows) / rows.numel()  # d/dW |c W - z|^2 at W = 1, a mean over numbers
    assert layer.projection.grad is not None and not layer.codebook.requires_grad
    torch.testing.assert_close(layer.projection.grad.double(), expected, rtol=1e-4, atol=1e-6)
    frozen = layer.codebook.clone()
    assert output.statistics is not None
    assert layer.update(output.statistics, 0.0, GENERATOR) == [] and torch.equal(layer.codebook, frozen)


def test_gumbel_starts_from_k_means_and_as_sharp_as_codes_are_near() -> None:
    layer = GumbelQuantizer(config("gumbel"))
    vectors = 5 * torch.randn(300, 3) + 2
    layer.initialise([vectors[:150], vectors[150:]], GENERATOR)
    squared = torch.cdist(vectors, layer.codebook.detach()).square()
    assert set(squared.argmin(1).tolist()) == set(range(12))
    counts = torch.bincount(squared.argmin(1), minlength=12)
    torch.testing.assert_close(layer.mean_counts, counts.to(layer.mean_counts) / 2)  # of a batch
    nearest = squared.amin(1)
    assert float((nearest * layer.log_precision.exp()).mean().detach()) == pytest.approx(1, rel=1e-4)
    expected = (-squared / nearest.mean()).log_softmax(1)
    torch.testing.assert_close(layer.logits(vectors).detach().log_softmax(1), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(layer.encode(vectors.T.reshape(1, 3, 1, 300))[0, 0], squared.argmin(1))


def test_gumbel_starts_with_finite_logits_where_every_vector_is_a_code() -> None:
    layer, vectors = GumbelQuantizer(config("gumbel")), torch.randn(6, 3)
    layer.initialise([vectors], GENERATOR)
    assert bool(layer.logits(vectors).isfinite().all()) and bool((layer.mean_counts > 0).all())


def test_a_dead_code_of_gumbel_moves_to_an_encoder_output() -> None:
    layer = GumbelQuantizer(config("gumbel"))
    samples = torch.randn(40, 3) + 100
    counts = torch.ones(12, 1)
    layer.mean_counts[[3, 7]] = 0.0
    counts[[3, 7]] = 0.0
    before = layer.codebook.detach().clone()
    statistics = Statistics(torch.cat([torch.zeros(12, 3), counts], 1), samples)
    assert layer.update(statistics, 0.9, GENERATOR) == [], "codes settle at the end"
    (reset,) = layer.update(statistics, 0.1, GENERATOR)
    assert reset.parameter is layer.codebook and reset.rows.nonzero().flatten().tolist() == [3, 7]
    moved = layer.codebook.detach()[reset.rows]
    assert all(bool((samples == row).all(1).any()) for row in moved) and not torch.equal(moved[0], moved[1])
    assert torch.equal(layer.codebook.detach()[~reset.rows], before[~reset.rows])
