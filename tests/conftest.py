"""What many tests share: small images, and one trained run of both stages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import train_prior, train_vqvae
from stage1_vqvae.config import belongs

TINY_VQVAE: dict[str, Any] = {
    "hidden": 8,
    "residual_blocks": 1,
    "residual_channels": 4,
    "num_codes": 12,
    "code_dim": 4,
    "learning_rate": 1e-3,
    "steps": 12,
    "batch_size": 8,
    "precision": "float32",
}
TINY_PRIOR: dict[str, Any] = {
    "hidden": 8,
    "layers": 3,
    "head": 8,
    "first_kernel": 5,
    "steps": 12,
    "batch_size": 8,
    "precision": "float32",
}


def tiny_vqvae(bottleneck: str, **options: Any) -> dict[str, Any]:
    """The tiny stage 1 with another bottleneck, less the options that mean nothing to it."""
    kept = {name: value for name, value in TINY_VQVAE.items() if belongs(name, bottleneck)}
    return {**kept, "bottleneck": bottleneck, **options}


@pytest.fixture(autouse=True)
def _fixed_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees another's random numbers, cache or runs, and all compute with the same number of threads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setenv("GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def shapes(n: int = 40, size: tuple[int, int] = (8, 12), channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images of two kinds, bright above or bright to the left, with noise; and which is which."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, channels, *size))
    images[labels == 0, :, : size[0] // 2] += 150
    images[labels == 1, :, :, : size[1] // 2] += 150
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with both stages, trained for a few steps. Tests only read it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    images, targets = shapes()
    train_vqvae(out=run, images=images, targets=targets, **TINY_VQVAE)
    train_prior(run, images=images, targets=targets, **TINY_PRIOR)
    return run
