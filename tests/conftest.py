"""What every test stands on: no test sees what another left behind."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _fixed_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees another's random numbers, cache or runs, and all compute with the same number of threads."""
    import torch  # here and not above: the process that hands out the tests to others needs none of it

    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.setenv("GEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
