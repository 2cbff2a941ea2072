"""The continuous bottlenecks: KL, discrepancy and health against independent computations; drawing without a prior."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipeline import UsageError, generate, generate_files, load, train_prior, train_vqvae
from pipeline.cli import main
from stage1_vqvae import VQVAE, VQVAEConfig
from stage1_vqvae.bottlenecks.gaussian import GaussianBottleneck, kl_to_standard_normal
from stage1_vqvae.bottlenecks.mmd import MMDBottleneck, kernel, squared_mmd
from tests.conftest import TINY_PRIOR, shapes, tiny_vqvae

Name = Literal["gaussian", "mmd", "none"]


def config(name: Name, **options: Any) -> VQVAEConfig:
    return VQVAEConfig(bottleneck=name, code_dim=3, channels=1, height=8, width=8, hidden=8, **options)


def test_kl_to_the_standard_normal_is_that_of_torch() -> None:
    mean, log_variance = 2 * torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_training_sees_draws_of_the_posterior_and_evaluation_its_mean() -> None:
    layer = GaussianBottleneck(config("gaussian"))
    mean, log_variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, -2.0, 1.0])
    outputs = torch.cat([mean, log_variance]).reshape(1, 6, 1, 1).expand(1, 6, 100, 200)
    drawn = layer.train()(outputs, 1.0).quantised[0].flatten(1)
    torch.testing.assert_close(drawn.mean(1), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.var(1), log_variance.exp(), atol=0.1, rtol=0)
    assert torch.equal(layer.eval()(outputs, 1.0).quantised, outputs[:, :3])


def test_the_loss_is_kl_an_image_shared_out_over_its_values() -> None:
    layer, outputs = GaussianBottleneck(config("gaussian", kl_weight=0.5)), torch.randn(4, 6, 2, 2)
    kl = float(kl_to_standard_normal(*outputs.chunk(2, 1)).sum()) / 4
    losses = [float(layer(outputs, progress).loss) for progress in (0.0, 0.05, 0.1, 1.0)]
    assert losses == pytest.approx([0, 0.25 * kl / 64, 0.5 * kl / 64, 0.5 * kl / 64])


def test_posterior_collapse_is_seen_in_active_units() -> None:
    layer = GaussianBottleneck(config("gaussian"))
    outputs = torch.randn(50, 6, 2, 2)
    outputs[:, :2] *= 0.01  # these two of three channels say nothing of the image
    outputs[:, 3:] = 0
    health = layer.summarise(layer.measure(outputs, layer.encode(outputs)))
    means = outputs[:, :3].double().numpy()
    assert health["active_units"] == pytest.approx((means.var(0) > 0.01).mean()) == pytest.approx(1 / 3)
    assert health["unit_variance"] == pytest.approx(means.var(0).mean())
    assert health["kl_a_unit"] == pytest.approx((means**2).mean() / 2)
    assert health["bits_an_image"] == pytest.approx((means**2).sum() / 2 / 50 / np.log(2))


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


@pytest.mark.parametrize("name", ["gaussian", "mmd"])
def test_images_are_drawn_without_a_prior(name: Name, tmp_path: Path) -> None:
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
def test_floats_travel_through_files(name: Name, tmp_path: Path) -> None:
    images, targets = shapes()
    train_vqvae(out="run", images=images, targets=targets, **tiny_vqvae(name, steps=2))
    samples = load("run").encode(torch.from_numpy(images[:3]))
    assert samples[0].dtype == torch.float32
    model = VQVAE(config(name)).double().eval()
    batch = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    codes = model.encode(batch)
    assert codes[0].dtype == torch.float64
    assert torch.equal(model.decode((codes[0].float(),)), model.decode(codes))
