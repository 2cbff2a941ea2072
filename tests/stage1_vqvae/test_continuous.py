"""The continuous bottlenecks: KL, discrepancy and summary against independent computations."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stage1_vqvae import VQVAEConfig
from stage1_vqvae.bottlenecks.gaussian import GaussianBottleneck, kl_to_standard_normal
from stage1_vqvae.bottlenecks.mmd import MMDBottleneck, kernel, squared_mmd

Name = Literal["gaussian", "mmd", "none"]


def config(name: Name, **options: Any) -> VQVAEConfig:
    return VQVAEConfig(bottleneck=name, code_dim=3, channels=1, height=8, width=8, hidden=8, **options)


def test_kl_to_the_standard_normal_is_that_of_torch() -> None:
    mean, log_variance = 2 * torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_training_samples_the_posterior_and_evaluation_takes_its_mean() -> None:
    layer = GaussianBottleneck(config("gaussian"))
    mean, log_variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, -2.0, 1.0])
    outputs = torch.cat([mean, log_variance]).reshape(1, 6, 1, 1).expand(1, 6, 100, 200)
    drawn = layer.train()(outputs, 1.0).quantized[0].flatten(1)
    torch.testing.assert_close(drawn.mean(1), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.var(1), log_variance.exp(), atol=0.1, rtol=0)
    assert torch.equal(layer.eval()(outputs, 1.0).quantized, outputs[:, :3])


def test_the_loss_is_the_kl_per_image_over_its_values() -> None:
    layer, outputs = GaussianBottleneck(config("gaussian", kl_weight=0.5)), torch.randn(4, 6, 2, 2)
    kl = float(kl_to_standard_normal(*outputs.chunk(2, 1)).sum()) / 4
    losses = [float(layer(outputs, progress).loss) for progress in (0.0, 0.05, 0.1, 1.0)]
    assert losses == pytest.approx([0, 0.25 * kl / 64, 0.5 * kl / 64, 0.5 * kl / 64])


def test_the_weight_of_the_kl_is_one_where_the_loss_is_a_likelihood() -> None:
    assert config("gaussian", likelihood="gaussian").kl_scale == 1.0, "the evidence lower bound"
    assert config("gaussian").kl_scale == 0.03
    assert config("gaussian", likelihood="gaussian", kl_weight=0.5).kl_scale == 0.5


def test_posterior_collapse_is_seen_in_active_units() -> None:
    layer = GaussianBottleneck(config("gaussian"))
    outputs = torch.randn(50, 6, 2, 2)
    outputs[:, :2] *= 0.01  # two of three channels that carry no information about the image
    outputs[:, 3:] = 0
    summary = layer.summarise(layer.measure(outputs, layer.encode(outputs)))
    means = outputs[:, :3].double().numpy()
    assert summary["active_units"] == pytest.approx((means.var(0) > 0.01).mean()) == pytest.approx(1 / 3)
    assert summary["unit_variance"] == pytest.approx(means.var(0).mean())
    assert summary["kl_per_unit"] == pytest.approx((means**2).mean() / 2)
    assert summary["bits_per_image"] == pytest.approx((means**2).sum() / 2 / 50 / np.log(2))


def test_equal_distributions_have_no_discrepancy_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 20, 6, generator=generator, dtype=torch.float64) for _ in range(2000)]
    found = np.array([float(squared_mmd(x, y)) for x, y in pairs])
    assert abs(found.mean()) < 4 * found.std() / 2000**0.5 < 2e-3
    # Of a sample and itself all pairs of different vectors weigh the same on both sides but for those with themselves.
    sample = pairs[0][0]
    others = float((kernel(sample, sample).sum() - 20) / (20 * 19))
    assert float(squared_mmd(sample, sample)) == pytest.approx(-2 * (1 - others) / 20, abs=1e-12)


def expected_kernel(dim: int, shift: float) -> float:
    """E k(x, y) of x ~ N(shift, I), y ~ N(0, I): C / (C + r) is the mean of exp(-t r) over t ~ Exp(C)."""
    total = 0.0
    for width in (2 * dim * scale for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)):
        quantiles = (np.arange(200_000) + 0.5) / 200_000
        t = -np.log(quantiles) / width
        total += ((1 + 4 * t) ** (-dim / 2) * np.exp(-t * dim * shift**2 / (1 + 4 * t))).mean()
    return total / 7


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_discrepancy_of_shifted_gaussians_is_the_known_one(shift: float) -> None:
    u, v = torch.randn(1500, 3, dtype=torch.float64), torch.randn(1500, 3, dtype=torch.float64)
    x, y = torch.cat([u, -u]) + shift, torch.cat([v, -v])  # the means are exact, which the cross term feels most
    assert float(kernel(x, y).mean()) == pytest.approx(expected_kernel(3, shift), abs=5e-3)
    expected = 2 * expected_kernel(3, 0) - 2 * expected_kernel(3, shift)
    assert float(squared_mmd(x, y)) == pytest.approx(expected, abs=0.012)


def test_the_penalty_leads_codes_to_the_standard_normal() -> None:
    layer = MMDBottleneck(config("mmd"))
    codes = torch.nn.Parameter(3 + 0.2 * torch.randn(64, 3, 2, 2))
    optimizer = torch.optim.Adam([codes], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        layer(codes, 1.0).loss.backward()
        optimizer.step()
    assert abs(float(codes.detach().mean())) < 0.3 and 0.6 < float(codes.detach().var()) < 1.8
