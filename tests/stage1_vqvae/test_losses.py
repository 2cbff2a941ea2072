"""Likelihoods of pixels: normalised, calibrated, and finite far from the reconstruction."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from stage1_vqvae import VQVAEConfig
from stage1_vqvae.losses import BIN, DiscretizedLogistic, GaussianLikelihood, Likelihood

Kind = Literal["gaussian", "discretized-logistic"]
KINDS: dict[Kind, type[Likelihood]] = {"gaussian": GaussianLikelihood, "discretized-logistic": DiscretizedLogistic}
every_likelihood = pytest.mark.parametrize("kind", list(KINDS))


def config(**options: Any) -> VQVAEConfig:
    sizes = {"channels": 3, "height": 8, "width": 8, "hidden": 8, "residual_channels": 4, "num_codes": 12}
    return VQVAEConfig(**{**sizes, **options})


def likelihood(kind: Kind, scale: float) -> Likelihood:
    made = KINDS[kind](config(), 0.05)
    least = math.log(0.1 / 255)
    beyond = math.log(scale) - least  # softplus undone
    made.slow_log_scale.data.fill_((least + beyond + math.log(-math.expm1(-beyond))) / 10)
    torch.testing.assert_close(made.log_scale.detach().exp(), torch.full((3, 1, 1), scale))
    return made


@every_likelihood
@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.2, 5.0])
def test_the_probabilities_of_all_values_add_up_to_one(kind: Kind, scale: float) -> None:
    means = torch.linspace(-0.7, 0.7, 8, dtype=torch.float64).reshape(8, 1, 1, 1).expand(8, 3, 1, 256)
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 256).expand(8, 3, 1, 256)
    total = (-likelihood(kind, scale).nats(means, values)).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_the_gaussian_bins_are_those_of_torch() -> None:
    means, values = 0.2 * torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randint(1, 255, (5, 3, 4, 4)).byte()
    nats = likelihood("gaussian", 0.1).nats(means, values)
    normal: Any = Normal(means, 0.1)
    centre = values.double() / 255 - 0.5
    expected = -(normal.cdf(centre + BIN / 2) - normal.cdf(centre - BIN / 2)).log()
    likely = expected < 20  # beyond that a difference of probabilities near 1 has no digits left
    assert int(likely.sum()) > 150
    torch.testing.assert_close(nats[likely], expected[likely], rtol=1e-5, atol=1e-9)


def test_the_logistic_bins_are_those_of_numpy() -> None:
    means, values = 0.2 * torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randint(0, 256, (5, 3, 4, 4)).byte()
    nats = likelihood("discretized-logistic", 0.05).nats(means, values).detach().numpy()
    k = values.numpy().astype(float)
    above = 1 / (1 + np.exp(-((k + 0.5) / 255 - 0.5 - means.numpy()) / 0.05))
    below = 1 / (1 + np.exp(-((k - 0.5) / 255 - 0.5 - means.numpy()) / 0.05))
    probability = np.where(k == 255, 1, above) - np.where(k == 0, 0, below)
    np.testing.assert_allclose(nats, -np.log(probability), rtol=1e-6)


@every_likelihood
def test_far_tails_keep_finite_values_and_gradients(kind: Kind) -> None:
    made = likelihood(kind, 1e-3)
    means = torch.full((1, 3, 1, 2), 5.0, requires_grad=True)
    target = torch.tensor([-0.5, 0.5]).expand(1, 3, 1, 2)
    made(means, target).backward()
    assert means.grad is not None and bool(means.grad.isfinite().all()) and bool((means.grad[..., 0] > 0).all())
    assert bool(made.nats(means.detach().double(), ((target + 0.5) * 255).byte()).isfinite().all())


def test_the_gaussian_loss_is_the_density_on_the_scale_of_bytes() -> None:
    means, target = 0.2 * torch.randn(2, 3, 4, 4), 0.2 * torch.randn(2, 3, 4, 4)
    normal: Any = Normal(255 * means, 25.5)
    expected = -normal.log_prob(255 * target).mean()
    torch.testing.assert_close(likelihood("gaussian", 0.1)(means, target).detach(), expected)


def test_the_logistic_loss_is_the_mean_of_the_nats_of_all_values() -> None:
    means, values = 0.2 * torch.randn(2, 3, 4, 4), torch.randint(0, 256, (2, 3, 4, 4)).byte()
    made = likelihood("discretized-logistic", 0.1)
    torch.testing.assert_close(made(means, values / 255 - 0.5), made.nats(means, values).mean())


@every_likelihood
def test_the_scale_is_calibrated_by_training(kind: Kind) -> None:
    made = KINDS[kind](config(), 0.08)
    means = torch.zeros(20, 3, 8, 8)
    spread = torch.tensor([0.02, 0.05, 0.1]).reshape(3, 1, 1)  # one per channel
    unit = torch.randn(20, 3, 8, 8) if kind == "gaussian" else torch.logit(torch.rand(20, 3, 8, 8))
    target = (spread * unit).clamp(-0.5, 0.5)
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        made(means, target).backward()
        optimizer.step()
    torch.testing.assert_close(made.log_scale.detach().exp(), spread, rtol=0.06, atol=0)


def test_a_scale_that_has_become_too_small_finds_back() -> None:
    made = GaussianLikelihood(config(), 0.05)
    made.slow_log_scale.data.fill_(-1.0)
    made(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.2)).backward()
    assert made.slow_log_scale.grad is not None and bool((made.slow_log_scale.grad < 0).all())


@every_likelihood
def test_the_scale_starts_at_the_spread_of_the_data(kind: Kind) -> None:
    made = KINDS[kind](config(), 0.04)
    torch.testing.assert_close(made.log_scale.detach().exp(), torch.full((3, 1, 1), 0.2), rtol=0.01, atol=0)
