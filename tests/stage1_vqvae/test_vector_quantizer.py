"""The quantizer's gradients, its moving averages and its revival of dead codes, computed a second time."""

import copy
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stage1_vqvae import VQVAEConfig
from stage1_vqvae.bottlenecks import Statistics, VectorQuantizer
from stage1_vqvae.bottlenecks.codebook import code_sums
from stage1_vqvae.bottlenecks.vector_quantizer import LAPLACE

Rule = Literal["ema", "gradient"]
RULES: list[Rule] = ["ema", "gradient"]


def quantizer(rule: Rule = "ema", **options: Any) -> VectorQuantizer:
    return VectorQuantizer(VQVAEConfig(num_codes=6, code_dim=3, codebook_rule=rule, **options))


def a_generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("rule", RULES)
def test_the_decoders_gradient_reaches_the_encoder_unchanged(rule: Rule) -> None:
    outputs = torch.randn(2, 3, 4, 5, requires_grad=True)
    weights = torch.randn(2, 3, 4, 5)
    (quantizer(rule)(outputs).quantized * weights).sum().backward()
    assert outputs.grad is not None
    assert torch.equal(outputs.grad, weights)


@pytest.mark.parametrize("rule", RULES)
def test_the_decoders_input_is_the_nearest_code(rule: Rule) -> None:
    layer, outputs = quantizer(rule), torch.randn(2, 3, 4, 5)
    result = layer(outputs)
    distances = (outputs[:, None] - layer.codebook.detach()[None, :, :, None, None]).square().sum(2)
    nearest = distances.argmin(1)
    assert torch.equal(result.codes, nearest) and torch.equal(layer.encode(outputs), nearest)
    expected = layer.codebook.detach()[nearest].movedim(-1, 1)
    torch.testing.assert_close(result.quantized, expected)
    torch.testing.assert_close(layer.decode(nearest), expected)


def test_beta_is_on_the_commitment_term_and_the_codebook_term_has_weight_one() -> None:
    layer = quantizer("gradient", commitment=0.25)
    outputs = torch.randn(2, 3, 4, 5, requires_grad=True)
    result = layer(outputs)
    result.loss.backward()
    difference = (outputs - layer.decode(result.codes)).detach()
    assert outputs.grad is not None and isinstance(layer.codebook, nn.Parameter) and layer.codebook.grad is not None
    torch.testing.assert_close(outputs.grad, 0.25 * 2 * difference / difference.numel())
    vectors = difference.permute(0, 2, 3, 1).reshape(-1, 3)
    expected = -2 / difference.numel() * code_sums(vectors, result.codes.flatten(), 6)[:, :3]
    torch.testing.assert_close(layer.codebook.grad, expected)


def test_under_ema_the_loss_is_the_commitment_alone() -> None:
    layer, outputs = quantizer("ema", commitment=2.0), torch.randn(2, 3, 4, 5)
    result = layer(outputs)
    torch.testing.assert_close(result.loss, 2.0 * F.mse_loss(outputs, layer.decode(result.codes)))


def test_moving_averages_are_those_of_the_paper() -> None:
    layer = quantizer("ema", ema_decay=0.9, revival_threshold=0.0).train()
    counts, sums = layer.mean_counts.double().numpy(), layer.mean_sums.double().numpy()
    for step in range(5):
        outputs = torch.randn(2, 3, 4, 5)
        result = layer(outputs)
        vectors = outputs.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        codes = result.codes.flatten().numpy()
        counts = 0.9 * counts + 0.1 * np.bincount(codes, minlength=6)
        sums = 0.9 * sums + 0.1 * np.stack([vectors[codes == code].sum(0) for code in range(6)])
        smoothed = (counts + LAPLACE) / (counts.sum() + 6 * LAPLACE) * counts.sum()
        assert layer.update(result.statistics, step / 5, a_generator()) == []
        np.testing.assert_allclose(layer.codebook.numpy(), sums / smoothed[:, None], rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("training", [True, False])
def test_forward_changes_no_state(rule: Rule, training: bool) -> None:
    layer = quantizer(rule).train(training)
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(2, 3, 4, 5))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_a_dead_code_moves_onto_a_sample_with_its_averages(rule: Rule) -> None:
    layer = quantizer(rule)
    layer.mean_counts.copy_(torch.tensor([10.0, 0.0, 10.0, 10.0, 0.1, 10.0]))
    alive = [0, 2, 3, 5]
    before = layer.codebook.detach().clone()
    sums = torch.zeros(6, 4)
    sums[:, 3] = layer.mean_counts  # a step whose counts leave the averages as they are
    if rule == "ema":
        layer.mean_sums.copy_(before * layer.mean_counts[:, None])
        sums[:, :3] = layer.mean_sums
    samples = torch.arange(12.0).reshape(4, 3) + 100
    resets = layer.update(Statistics(sums, samples), 0.5, a_generator())
    codebook = layer.codebook.detach()
    torch.testing.assert_close(codebook[alive], before[alive], rtol=1e-3, atol=1e-3)
    moved = [int((samples == codebook[dead]).all(1).nonzero()) for dead in (1, 4)]
    assert len(set(moved)) == 2, "each dead code takes a sample of its own"
    mean = torch.tensor(40.1 / 6)
    torch.testing.assert_close(layer.mean_counts[[1, 4]], mean.expand(2))
    if rule == "ema":
        torch.testing.assert_close(layer.mean_sums[[1, 4]], codebook[[1, 4]] * mean)
        assert resets == []
    else:
        assert resets[0].parameter is layer.codebook
        assert resets[0].rows.tolist() == [False, True, False, False, True, False]


def test_a_learned_codebook_is_no_buffer_and_an_averaged_one_no_parameter() -> None:
    assert [name for name, _ in quantizer("gradient").named_parameters()] == ["codebook"]
    assert list(quantizer("ema").parameters()) == []


def test_no_code_is_revived_at_the_end_or_with_threshold_zero() -> None:
    for options, progress in (({"revival_ends": 0.85}, 0.85), ({"revival_threshold": 0.0}, 0.1)):
        layer = quantizer("gradient", **options)
        layer.mean_counts.copy_(torch.tensor([10.0, 0.0, 10.0, 10.0, 0.0, 10.0]))
        before = layer.codebook.detach().clone()
        statistics = Statistics(torch.zeros(6, 4), torch.randn(4, 3))
        assert layer.update(statistics, progress, a_generator()) == []
        assert torch.equal(layer.codebook, before)


def test_samples_are_distinct_outputs_of_the_batch() -> None:
    outputs = torch.randn(2, 3, 4, 5)
    samples = quantizer().train()(outputs).statistics.samples
    vectors = outputs.permute(0, 2, 3, 1).reshape(-1, 3)
    assert sorted(samples.tolist()) == sorted(vectors.tolist()), "few outputs: all of them, once each"
    assert len(quantizer().eval()(outputs).statistics.samples) == 0


@pytest.mark.parametrize("training", [True, False])
def test_statistics_hold_no_graph_of_the_step(training: bool) -> None:
    """They are kept over all micro-batches, and so would the activations be."""
    statistics = quantizer().train(training)(torch.randn(2, 3, 4, 5, requires_grad=True)).statistics
    assert not statistics.samples.requires_grad and not statistics.sums.requires_grad


def test_more_dead_codes_than_samples_revives_as_many_as_there_are_samples() -> None:
    layer = quantizer("gradient", revival_threshold=0.5)
    layer.mean_counts.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    statistics = Statistics(torch.zeros(6, 4), torch.randn(2, 3))
    resets = layer.update(statistics, 0.0, a_generator())
    assert int(resets[0].rows.sum()) == 2


def test_autocast_changes_no_code() -> None:
    layer = VectorQuantizer(VQVAEConfig(num_codes=512, code_dim=8))
    outputs = torch.randn(4, 8, 16, 16).bfloat16()  # as convolutions under autocast leave them
    expected = layer.encode(outputs.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, encoded = layer(outputs), layer.encode(outputs)
        careless = torch.cdist(outputs.float().flatten(2).mT, layer.codebook).argmin(-1)
        rough = (outputs.flatten(2).mT @ layer.codebook.T - layer.codebook.square().sum(1) / 2).argmax(-1)
    assert torch.equal(inside.codes, expected) and torch.equal(encoded, expected)
    assert inside.quantized.dtype == inside.loss.dtype == torch.float32
    assert torch.equal(careless.reshape(expected.shape), expected)
    assert not torch.equal(rough.reshape(expected.shape), expected), "in bfloat16 codes would change"


@pytest.mark.parametrize("rule", RULES)
def test_initialisation_gives_every_code_vectors(rule: Rule) -> None:
    layer = quantizer(rule)
    batches = [torch.randn(100, 3) + 5 for _ in range(3)]
    layer.initialise(batches, a_generator())
    codes = layer.encode(torch.cat(batches).T.reshape(1, 3, 1, -1))
    assert len(set(codes.flatten().tolist())) == 6
    assert float(layer.mean_counts.sum()) == pytest.approx(100, rel=1e-3), "counts are those of one batch"


@pytest.mark.parametrize(("vectors", "rate"), [(12, 0.01), (36, 0.03), (1000, 0.1)])
def test_averages_move_so_fast_that_a_code_is_the_mean_of_two_hundred_vectors(vectors: int, rate: float) -> None:
    layer = quantizer("ema", revival_threshold=0.0)
    before = layer.mean_counts.clone()
    sums = torch.zeros(6, layer.outputs + 1)
    sums[:, -1] = vectors / 6
    layer.update(Statistics(sums, torch.zeros(0, layer.outputs)), 0.0, torch.Generator())
    torch.testing.assert_close(layer.mean_counts, before + rate * (sums[:, -1] - before))


def test_sums_and_counts_move_at_one_rate_which_follows_from_the_counts_of_the_step() -> None:
    """At two rates a code would be no mean of vectors any more."""
    layer, sums = quantizer(revival_threshold=0.0), torch.randn(6, 4)
    sums[:, 3] = torch.tensor([0.0, 10.0, 20.0, 30.0, 40.0, 20.0])  # 20 in the mean, of 200
    expected = [torch.lerp(layer.mean_sums, sums[:, :3], 0.1), torch.lerp(layer.mean_counts, sums[:, 3], 0.1)]
    layer.update(Statistics(sums, torch.empty(0, 3)), 0.1, a_generator())
    torch.testing.assert_close([layer.mean_sums, layer.mean_counts], expected)


def test_counts_are_smoothed_where_a_code_is_hardly_used() -> None:
    """Appendix A.1: N + epsilon over the sum of all, so that a rare code is not divided by almost nothing."""
    layer = quantizer("ema", ema_decay=0.9, revival_threshold=0.0)
    counts = np.array([2e-5, 4e-5, 5e-5, 6e-5, 1e-4, 2e-4])
    sums = np.arange(18.0).reshape(6, 3) + 1
    layer.mean_counts.copy_(torch.from_numpy(counts))
    layer.mean_sums.copy_(torch.from_numpy(sums))
    layer.update(Statistics(torch.zeros(6, 4), torch.zeros(0, 3)), 0.5, a_generator())
    total = 0.9 * counts.sum()
    smoothed = (0.9 * counts + 1e-5) / (total + 6 * 1e-5) * total
    np.testing.assert_allclose(layer.codebook.numpy(), 0.9 * sums / smoothed[:, None], rtol=1e-5)
    assert smoothed[0] / (0.9 * counts[0]) > 1.3, "so much that it counts"


def test_a_code_that_nothing_has_chosen_for_long_stays_where_it_is() -> None:
    layer = quantizer("ema", ema_decay=0.9, revival_threshold=0.0)
    layer.mean_counts[[1, 4]] = 1e-7
    layer.mean_sums[[1, 4]] = 0.0
    before = layer.codebook.clone()
    layer.update(Statistics(torch.ones(6, 4), torch.zeros(0, 3)), 0.5, a_generator())
    assert not torch.equal(layer.codebook[0], before[0])
    layer.mean_counts[[1, 4]] = 1e-7
    before = layer.codebook.clone()
    layer.update(Statistics(torch.zeros(6, 4), torch.zeros(0, 3)), 0.5, a_generator())
    assert torch.equal(layer.codebook[[1, 4]], before[[1, 4]])


def test_averages_start_where_the_codes_are() -> None:
    """A step in which nothing is seen leaves every code where k-means put it."""
    layer = quantizer("ema", ema_decay=0.9, revival_threshold=0.0)
    layer.initialise([torch.randn(100, 3) + 5 for _ in range(3)], a_generator())
    before = layer.codebook.clone()
    layer.update(Statistics(torch.zeros(6, 4), torch.zeros(0, 3)), 0.0, a_generator())
    torch.testing.assert_close(layer.codebook, before, rtol=1e-4, atol=0)
