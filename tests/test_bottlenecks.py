"""The bottlenecks beside the vector quantizer, against independent computations; and what all of them hold to."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from pipeline import generate, train_prior, train_vqvae
from stage1_vqvae import VQVAE, VQVAEConfig
from stage1_vqvae.bottlenecks import BOTTLENECKS, FiniteScalarQuantizer, GumbelQuantizer
from stage1_vqvae.bottlenecks.gumbel import FINAL_TEMPERATURE, kl_to_uniform, temperature
from tests.conftest import TINY_PRIOR, TINY_VQVAE, shapes

Name = Literal["vq", "gumbel", "fsq"]
every_bottleneck = pytest.mark.parametrize("name", list(BOTTLENECKS))


def config(name: Name, num_codes: int = 12, **options: Any) -> VQVAEConfig:
    return VQVAEConfig(bottleneck=name, num_codes=num_codes, code_dim=3, channels=1, height=8, width=8, **options)


def finite(num_codes: int) -> FiniteScalarQuantizer:
    return FiniteScalarQuantizer(config("fsq", num_codes))


@pytest.mark.parametrize(
    ("num_codes", "levels"), [(512, (8, 8, 8)), (1000, (8, 5, 5, 5)), (64, (8, 8)), (16384, (8, 8, 8, 8, 4)), (6, (6,))]
)
def test_levels_multiply_to_the_number_of_codes(num_codes: int, levels: tuple[int, ...]) -> None:
    assert config("fsq", num_codes).fsq_levels == levels


def test_a_number_of_codes_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="--num-codes 509 is no product of 2 to 8"):
        config("fsq", 509)


@given(st.sampled_from([6, 12, 35, 64, 1000]))
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
    outputs = ((vectors * layer.centre + offset) / reach).atanh() - (offset / reach).atanh()
    assert torch.equal(layer.encode(outputs), codes)


@pytest.mark.parametrize("num_codes", [5, 8, 35])
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
    (layer(outputs, 0.0).quantised * weights).sum().backward()
    reach = (layer.levels - 1) * (1 + 1e-3) / 2
    expected = weights * reach / layer.centre * (1 - outputs.detach().tanh() ** 2)  # 5 and 7 levels: no offset
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, expected)


def test_kl_to_uniform_is_that_of_torch() -> None:
    logits = 3 * torch.randn(2, 12, 3, 4)
    expected = kl_divergence(Categorical(logits=logits.movedim(1, -1)), Categorical(logits=torch.zeros(2, 3, 4, 12)))
    torch.testing.assert_close(kl_to_uniform(logits), expected)


def test_the_temperature_falls_from_one_to_a_sixteenth() -> None:
    values = [temperature(progress) for progress in np.linspace(0, 1, 11)]
    assert values[0] == 1 and values[-1] == FINAL_TEMPERATURE == 1 / 16
    assert values == sorted(values, reverse=True)
    assert temperature(0.5) == pytest.approx((1 + 1 / 16) / 2)


def test_the_kl_term_warms_up_from_nothing() -> None:
    layer, logits = GumbelQuantizer(config("gumbel", kl_weight=0.5)), torch.randn(2, 12, 3, 4)
    kl = float(kl_to_uniform(logits).mean())
    assert [float(layer(logits, progress).loss.detach()) for progress in (0.0, 0.05, 0.1, 1.0)] == pytest.approx(
        [0, 0.25 * kl, 0.5 * kl, 0.5 * kl]
    )


def test_relaxed_samples_have_the_marginals_of_the_logits() -> None:
    layer = GumbelQuantizer(config("gumbel", 4)).train()
    layer.codebook.data = F.one_hot(torch.arange(4)).float()[:, :3]  # the mixture's weights can be read off
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    mixture = layer(logits.reshape(1, 4, 1, 1).expand(20_000, 4, 1, 1), 0.3).quantised.detach().flatten(1)
    chosen = torch.cat([mixture, 1 - mixture.sum(1, keepdim=True)], 1).argmax(1)
    expected = 20_000 * logits.softmax(0)
    chi_square = float(((torch.bincount(chosen, minlength=4) - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # 99.9 % for 3 degrees of freedom


def test_relaxed_samples_are_nearly_codes_at_the_end() -> None:
    layer = GumbelQuantizer(config("gumbel", 4)).train()
    layer.codebook.data = torch.eye(4)[:, :3]
    mixture = layer(4 * torch.randn(500, 4, 1, 1), 1.0).quantised.detach()
    assert float((mixture.round() - mixture).abs().mean()) < 0.02


@every_bottleneck
def test_what_is_decoded_is_what_the_decoder_saw(name: Name) -> None:
    model = VQVAE(config(name, hidden=8, residual_channels=4)).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    output = model(images, 1.0)
    assert torch.equal(model.encode(images)[0], output.codes[0])
    assert int(output.codes[0].min()) >= 0 and int(output.codes[0].max()) < 12
    reconstructed = ((output.reconstruction + 0.5) * 255).round().clamp(0, 255).byte()
    assert (model.decode(output.codes).int() - reconstructed.int()).abs().max() <= 1


@every_bottleneck
def test_autocast_changes_no_code(name: Name) -> None:
    layer = BOTTLENECKS[name](config(name)).eval()
    outputs = torch.randn(4, layer.inputs, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, codes = layer(outputs, 0.5), layer.encode(outputs)
    high = layer(outputs, 0.5)
    assert torch.equal(low.codes, high.codes) and torch.equal(codes, high.codes)
    assert torch.equal(low.quantised, high.quantised)


@every_bottleneck
def test_the_loss_reaches_every_weight(name: Name) -> None:
    model = VQVAE(config(name, hidden=8, residual_channels=4)).train()
    model(torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8), 0.5).loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


@every_bottleneck
def test_each_bottleneck_feeds_stage_two(tmp_path: Path, name: Name) -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **{**TINY_VQVAE, "bottleneck": name, "steps": 4})
    train_prior("run", images=images, targets=targets, force=True, **{**TINY_PRIOR, "steps": 4})
    samples = generate("run", 3)
    assert samples.images.shape == (3, 1, 8, 12) and int(samples.codes[0].max()) < 12
