"""Examples in docstrings say what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for package in ("stage1_vqvae", "stage2_prior", "pipeline") for path in (ROOT / package).rglob("*.py")]
WITH_EXAMPLES = sorted(path.relative_to(ROOT) for path in FILES if ">>> " in path.read_text())


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_give_what_they_show(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert result.attempted > 0 and result.failed == 0
