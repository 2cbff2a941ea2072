"""Likelihoods of pixels: normalised, calibrated, and bits/dim; the critic's two losses."""

import json
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from pipeline import train_vqvae
from pipeline.training import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig
from stage1_vqvae.critic import Critic, heard
from stage1_vqvae.loss import BIN, DiscretizedLogistic, GaussianLikelihood, Likelihood
from stage1_vqvae.model import _noise_of
from tests.conftest import TINY_VQVAE, shapes

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
    made(means, target, torch.tensor(1.0)).backward()
    assert means.grad is not None and bool(means.grad.isfinite().all()) and bool((means.grad[..., 0] > 0).all())
    assert bool(made.nats(means.detach().double(), ((target + 0.5) * 255).byte()).isfinite().all())


def test_the_gaussian_loss_is_the_density_on_the_scale_of_bytes() -> None:
    means, target = 0.2 * torch.randn(2, 3, 4, 4), 0.2 * torch.randn(2, 3, 4, 4)
    normal: Any = Normal(255 * means, 25.5)
    expected = -normal.log_prob(255 * target).mean()
    torch.testing.assert_close(likelihood("gaussian", 0.1)(means, target, torch.tensor(0.0)).detach(), expected)


@every_likelihood
def test_the_scale_is_calibrated_by_training(kind: Kind) -> None:
    made = KINDS[kind](config(), 0.08)
    means = torch.zeros(20, 3, 8, 8)
    spread = torch.tensor([0.02, 0.05, 0.1]).reshape(3, 1, 1)  # a channel each
    unit = torch.randn(20, 3, 8, 8) if kind == "gaussian" else torch.logit(torch.rand(20, 3, 8, 8))
    target = (spread * unit).clamp(-0.5, 0.5)
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        made(means, target, torch.tensor(0.0)).backward()
        optimizer.step()
    torch.testing.assert_close(made.log_scale.detach().exp(), spread, rtol=0.06, atol=0)


def test_a_scale_that_has_become_too_small_finds_back() -> None:
    made = GaussianLikelihood(config(), 0.05)
    made.slow_log_scale.data.fill_(-1.0)
    made(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.2), torch.tensor(0.0)).backward()
    assert made.slow_log_scale.grad is not None and bool((made.slow_log_scale.grad < 0).all())


def test_noise_belongs_to_the_image_and_not_to_its_batch() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    noise = _noise_of(images, (4, 2, 2))
    assert torch.equal(_noise_of(images[3:], (4, 2, 2)), noise[3:]) and len({float(part.sum()) for part in noise}) == 5
    many = _noise_of(torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8), (4, 4, 4))
    assert abs(float(many.mean())) < 0.03 and float(many.std()) == pytest.approx(1, abs=0.03)


@every_likelihood
@pytest.mark.parametrize("bottleneck", ["vq", "gaussian"])
def test_bits_per_dim_are_those_of_pixels_and_codes(kind: Kind, bottleneck: Literal["vq", "gaussian"]) -> None:
    network = VQVAE(config(bottleneck=bottleneck, likelihood=kind), 0.08).double().eval()
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    result = network.summarise(network.evaluate(images))
    made = network.reconstruction_loss
    assert isinstance(made, Likelihood)
    with torch.no_grad():
        features = network.encoder(network._normalise(images))
        drawn = network.levels.sample(features, _noise_of(images, (network.levels.code_dim, 2, 2)).double())
        pixels = float(made.nats(network.decoder(drawn), images).mean()) / math.log(2)
        outputs = network.levels.entry(features)
    if bottleneck == "vq":
        bits = 4 * math.log2(12)
    else:
        mean, log_variance = outputs.chunk(2, 1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
        bits = float(kl.sum()) / 6 / math.log(2)
    assert result["bits_per_dim"] == pytest.approx(pixels + bits / 192)


def test_without_a_likelihood_or_a_distribution_of_codes_there_are_no_bits_per_dim() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    for options in ({}, {"bottleneck": "none", "likelihood": "gaussian"}, {"bottleneck": "mmd"}):
        network = VQVAE(config(**options)).eval()
        assert "bits_per_dim" not in network.summarise(network.evaluate(images))


def test_the_critic_and_the_decoder_are_trained_apart_by_one_sum() -> None:
    critic = Critic(config())
    real, fake = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8, requires_grad=True)
    losses = critic.losses(real, fake)
    torch.autograd.backward([losses.critic + losses.decoder])
    got = [p.grad.clone() for p in critic.parameters() if p.grad is not None]
    critic.zero_grad()
    hinge = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake.detach())).mean()
    for mine, expected in zip(got, torch.autograd.grad(hinge, list(critic.parameters())), strict=True):
        torch.testing.assert_close(mine, expected)
    assert fake.grad is not None
    torch.testing.assert_close(fake.grad, torch.autograd.grad(-critic(fake).mean(), fake)[0])


def test_the_critic_learns_to_tell_and_the_decoder_hears_it_late() -> None:
    critic = Critic(config())
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward([critic.losses(torch.rand(8, 3, 8, 8), torch.full((8, 3, 8, 8), 0.5)).critic])
        optimizer.step()
    assert float((critic(torch.rand(8, 3, 8, 8)) - critic(torch.full((8, 3, 8, 8), 0.5))).detach().mean()) > 1
    assert [heard(progress) for progress in (0.0, 0.3, 0.35, 0.4, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_an_adversarial_training_keeps_its_latest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = shapes()
    for adversarial, kept in ((True, 12), (False, 3)):
        values = iter([0.1, 0.2, 0.3, 0.4])
        monkeypatch.setattr(Trainer, "evaluate", lambda self, values=values: {"nmse": next(values)})
        options = {**TINY_VQVAE, "adversarial": adversarial, "evaluations": 4}
        run = train_vqvae(out=f"run-{adversarial}", images=images, targets=targets, **options).run
        assert json.loads((run / "vqvae" / "held_out.json").read_text())["step"] == kept


def test_the_critic_takes_part_in_training_alone() -> None:
    network = VQVAE(config(adversarial=True))
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    assert "critic_loss" in network.train()(images, 0.5).metrics
    assert "critic_loss" not in network.eval()(images, 0.5).metrics
    network.train()(images, 0.0).loss.backward()
    early = [p.grad.clone() for p in network.decoder.parameters() if p.grad is not None]
    network.zero_grad()
    network(images, 1.0).loss.backward()
    assert any(
        not torch.equal(p.grad, e)
        for p, e in zip(network.decoder.parameters(), early, strict=True)
        if p.grad is not None
    )
