"""Small images, and options of small models, for many tests."""

from typing import Any

import numpy as np

from stage1_vqvae.config import applies_to

TINY_VQVAE: dict[str, Any] = {
    "hidden": 8,
    "residual_blocks": 1,
    "residual_channels": 4,
    "num_codes": 12,
    "code_dim": 4,
    "learning_rate": 1e-3,
    "steps": 12,
    "evaluations": 2,
    "checkpoints": 2,
    "batch_size": 8,
    "precision": "float32",
}
TINY_PRIOR: dict[str, Any] = {
    "hidden": 8,
    "layers": 3,
    "head": 8,
    "first_kernel": 5,
    "steps": 12,
    "evaluations": 2,
    "checkpoints": 2,
    "batch_size": 8,
    "precision": "float32",
}


def tiny_vqvae(bottleneck: str, **options: Any) -> dict[str, Any]:
    """The tiny stage 1 with another bottleneck, less the options that mean nothing to it."""
    kept = {name: value for name, value in TINY_VQVAE.items() if applies_to(name, bottleneck)}
    return {**kept, "bottleneck": bottleneck, **options}


def shapes(n: int = 40, size: tuple[int, int] = (8, 12), channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images of two kinds, bright above or bright to the left, with noise; and which is which."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 60, (n, channels, *size))
    images[labels == 0, :, : size[0] // 2] += 150
    images[labels == 1, :, :, : size[1] // 2] += 150
    return images.astype(np.uint8), labels
