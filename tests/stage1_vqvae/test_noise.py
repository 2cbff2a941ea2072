"""Noise on images, and learning to make clean ones of noisy ones."""

import numpy as np
import pytest
import torch

from stage1_vqvae import VQVAE, VQVAETask
from stage1_vqvae.noise import add_noise, add_own_noise
from tests.stage1_vqvae.test_task import config, random_images


def task_with(denoise: float) -> VQVAETask:
    torch.manual_seed(1)
    return VQVAETask(VQVAE(config(denoise=denoise, likelihood="gaussian"), 0.04))


def test_noise_has_its_standard_deviation_in_units_of_white_and_stays_a_pixel() -> None:
    grey = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    for noisy in (add_noise(grey, 0.1), add_own_noise(grey + torch.arange(40).byte()[:, None, None, None] % 2, 0.1)):
        assert noisy.dtype == torch.uint8
        differences = noisy.double() - 128
        assert float(differences.std()) / 255 == pytest.approx(0.1, rel=0.02)
        assert abs(float(differences.mean())) < 1
    black = add_noise(torch.zeros(40, 3, 16, 16, dtype=torch.uint8), 0.5)
    # A half is cut off, and a twentieth of what is left: E[min(max(x, 0), 1)] of x from N(0, 1/4) is .1953.
    assert float((black == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(black.double().mean()) / 255 == pytest.approx(0.1953, rel=0.03)


def test_noise_is_drawn_anew_or_belongs_to_the_image() -> None:
    images = random_images(5)
    assert add_noise(images, 0.0) is images and add_own_noise(images, 0.0) is images
    first, second = (add_noise(images, 0.2, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(first, add_noise(images, 0.2, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)
    own = add_own_noise(images, 0.2)
    assert torch.equal(add_own_noise(images[2:], 0.2), own[2:]) and not torch.equal(own, images)


def test_the_encoder_sees_noise_and_the_target_is_clean() -> None:
    """The loss and its gradient are those of clean images and of the reconstructions of noisy ones."""
    task, images = task_with(0.2).train(), random_images(4)
    torch.manual_seed(7)
    loss = task(images, 0.5).loss
    weights = list(task.network.decoder.parameters())
    gradient = torch.autograd.grad(loss, weights)
    torch.manual_seed(7)
    noisy = add_noise(images, 0.2)
    assert not torch.equal(noisy, images)
    output = task.network(noisy, 0.5)
    assert task.network.likelihood is not None
    expected = task.network.likelihood(output.reconstruction, images.float() / 255 - 0.5)
    expected = expected + torch.stack([level.loss for level in output.levels]).sum()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradient, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_validation_measures_how_well_it_denoises() -> None:
    task, images = task_with(0.2).eval(), random_images(6)
    task.initialise([images], torch.Generator().manual_seed(0))  # of a random codebook noise would change no code
    result = task.summarise(task.evaluate(images))
    noisy = add_own_noise(images, 0.2)
    with torch.no_grad():
        reconstruction = task.network(noisy).reconstruction.double().numpy()
        codes = task.network.encode(noisy)
    assert not torch.equal(codes[0], task.network.encode(images)[0])
    error = np.square(reconstruction - (images.double().numpy() / 255 - 0.5)).mean()
    assert result.values["nmse"] == pytest.approx(error / 0.04, rel=1e-5)
    frequencies = torch.bincount(codes[0].flatten(), minlength=12).double() / codes[0].numel()
    assert result.levels[0]["perplexity"] == pytest.approx(float(torch.special.entr(frequencies).sum().exp()))
    nats = task.network.pixel_nats(images, codes)
    assert nats is not None
    bits = float(nats.mean()) / np.log(2) + 4 * np.log2(12)
    assert result.values["bits_per_dim"] == pytest.approx(bits / 192, rel=1e-5)


def test_codebooks_begin_where_noisy_images_lie() -> None:
    """k-means is given what the encoder makes of noisy images: of one image four times, four different vectors."""
    for denoise, distinct in ((0.0, 1), (0.2, 4)):
        task, images = task_with(denoise), random_images(1).expand(4, -1, -1, -1)
        seen: list[torch.Tensor] = []
        task.network.levels.entry.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output))
        task.initialise([images], torch.Generator().manual_seed(0))
        assert len({tuple(row) for row in seen[0].detach()[:, :, 0, 0].tolist()}) == distinct


def test_without_denoising_nothing_random_is_drawn() -> None:
    """So runs without it are byte for byte what they were before there was any, whatever else draws numbers."""
    task, images = VQVAETask(VQVAE(config(bottleneck="none"))).train(), random_images(4)
    before = torch.random.get_rng_state()
    task(images)
    task.eval().evaluate(images)
    assert torch.equal(torch.random.get_rng_state(), before)
