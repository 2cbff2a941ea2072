"""Reconstructions beside their images, one by one: errors, similarity, and the power of what is fine."""

import numpy as np
import pytest

from pipeline.evaluation.measures import fidelity as module
from pipeline.evaluation.measures.fidelity import fidelity, high_frequency_power, similarities, squared_errors


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Seven images and their reconstructions, in batches of three, of which the last has one."""
    monkeypatch.setattr(module, "_BATCH", 3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 3, 12, 16)).astype(np.uint8)
    noise = rng.normal(0, 5 * np.arange(7).reshape(-1, 1, 1, 1), images.shape)
    return images, np.clip(images + noise, 0, 255).astype(np.uint8)


def test_the_figures_of_a_set_are_those_of_its_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    images, restored = pair
    errors, similar = squared_errors(*pair), similarities(*pair)
    assert errors == pytest.approx(((images / 255 - restored / 255) ** 2).mean((1, 2, 3)))
    assert similar is not None and errors[0] == 0 and similar[0] == pytest.approx(1)
    assert (np.diff(errors) > 0).all() and (np.diff(similar) < 0).all()
    reached = fidelity(images, restored, 0.05)
    assert reached.nmse == pytest.approx(errors.mean() / 0.05)
    assert reached.psnr == pytest.approx(-10 * np.log10(errors.mean()))
    assert reached.ssim == pytest.approx(similar.mean())
    alone = [fidelity(images[i : i + 1], restored[i : i + 1], 0.05).ssim for i in range(7)]
    assert similar == pytest.approx(np.array(alone), rel=1e-5)


def test_power_below_half_the_nyquist_frequency_does_not_count() -> None:
    rows, columns = np.mgrid[:16, :24]
    waves = {
        "constant": np.zeros((16, 24)),
        "low": np.cos(2 * np.pi * columns * 6 / 24),  # a quarter of a cycle a pixel: exactly half of Nyquist's
        "high": np.cos(2 * np.pi * columns * 7 / 24),
        "diagonal": np.cos(2 * np.pi * (rows * 4 / 16 + columns * 1 / 24)),  # neither is above it, both together are
        "checkerboard": (-1.0) ** (rows + columns),
    }
    images = np.stack([128 + 100 * wave for wave in waves.values()]).round().astype(np.uint8)[:, None]
    power = high_frequency_power(images) * 255**2
    assert power == pytest.approx([0, 0, 5000, 5000, 10_000], rel=0.01, abs=1)  # of a wave half its squared amplitude
    assert high_frequency_power(np.repeat(images, 3, 1)) == pytest.approx(high_frequency_power(images))


def test_blurred_images_have_little_of_the_power_of_noise(pair: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = pair
    shifts = [(rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]
    blurred = np.mean([np.roll(images, shift, (2, 3)) for shift in shifts], axis=0).round().astype(np.uint8)
    total = high_frequency_power(images).sum()
    assert high_frequency_power(blurred).sum() < 0.1 * total
    variance = (images / 255).mean(1).var((1, 2)).sum()
    assert total == pytest.approx((1 - np.pi * 0.25**2) * variance, rel=0.1)  # of white noise, what is outside a disc


def test_no_images_have_no_figures() -> None:
    none = np.zeros((0, 1, 16, 16), np.uint8)
    similar = similarities(none[:, :, :8], none[:, :, :8])
    assert len(squared_errors(none, none)) == len(high_frequency_power(none)) == 0 and similar is None
