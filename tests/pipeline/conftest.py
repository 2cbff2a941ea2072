"""One trained run of both stages, which many tests read; and a browser, for those that open pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Debian's chromium, without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path is not None, "these tests need Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
