"""What a person sees: a bar in a terminal, a line every so often elsewhere, nothing where nothing was asked for."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import Console, Lines, Silent, train_vqvae
from pipeline.cli.main import main
from pipeline.reporting import reporter_for_api, reporter_for_command
from tests.tiny import TINY_VQVAE, shapes


class Terminal(io.StringIO):
    """A standard error stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands still but for what is added to it."""
    now = [100.0]
    monkeypatch.setattr("pipeline.reporting.time.monotonic", lambda: now[0])
    yield now


def test_lines_come_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Lines()
    for step in reporter.steps(range(100, 1100), "prior"):
        clock[0] += 0.5
        reporter.show({"loss": 2.5, "images/s": 1234.5})
        assert step >= 100
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 16, "500 seconds, less the last moment"
    assert said[0] == "prior: 160 of 1,100  loss 2.5  images/s 1,234  7.8 min left"
    assert not any("\r" in line for line in said)
    assert list(reporter.steps(range(3), "short")) == [0, 1, 2] and not capsys.readouterr().err


def test_who_sees_what(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(reporter_for_command(quiet=False), Lines), "pytest is no terminal"
    assert isinstance(reporter_for_command(quiet=True), Silent)
    assert isinstance(reporter_for_api(), Silent)
    monkeypatch.setattr("builtins.__IPYTHON__", True, raising=False)
    assert isinstance(reporter_for_api(), Console), "a notebook"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(reporter_for_command(quiet=False), Console) and isinstance(reporter_for_api(), Console)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(reporter_for_command(quiet=False), Silent) and isinstance(reporter_for_api(), Silent)


def test_training_through_the_api_shows_progress_in_a_terminal_and_can_be_silenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, targets = shapes()
    for reporter, shown in ((None, True), (Silent(), False)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        train_vqvae(out=f"run-{shown}", images=images, targets=targets, reporter=reporter, **TINY_VQVAE)
        assert ("12/12" in terminal.getvalue()) == shown and ("learn a codebook" in terminal.getvalue()) == shown


def test_a_command_that_is_no_terminals_writes_lines_and_a_quiet_one_the_result_alone(trained: Path) -> None:
    loud = CliRunner().invoke(main, ["sample", str(trained), "--n", "3", "--out", "loud"])
    assert "draw 3 images" in loud.stderr and "it/s" not in loud.stderr and "\r" not in loud.stderr
    quiet = CliRunner().invoke(main, ["sample", str(trained), "--n", "3", "--out", "quiet", "--quiet"])
    assert quiet.stderr == "" and quiet.stdout.startswith("wrote 3 images into quiet")
