"""One trained run of both stages, which many tests read."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with both stages, trained for a few steps. Tests only read it."""
    # Here and not above: shapes are checked at run time in packages that are imported after pytest has begun.
    from pipeline import train_prior, train_vqvae
    from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

    run = tmp_path_factory.mktemp("trained") / "run"
    images, targets = shapes()
    train_vqvae(out=run, images=images, targets=targets, **TINY_VQVAE)
    train_prior(run, images=images, targets=targets, **TINY_PRIOR)
    return run
