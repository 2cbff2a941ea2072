"""Signals: the first is noted, a second one acts at once, and those that are to be ignored are."""

import signal
from collections.abc import Iterator

import pytest
from accelerate import Accelerator

from pipeline.interruption import Interruption


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Those of a program in a terminal, also where the tests themselves run behind nohup or in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_first_signal_is_noted_and_handlers_come_back(accelerator: Accelerator, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption(accelerator) as interruption:
        assert interruption.agreed(3) == 0
        signal.raise_signal(number)
        assert interruption.signal_number == interruption.agreed(3) == number
    assert signal.getsignal(number) is before


def test_a_persons_second_signal_acts_at_once(accelerator: Accelerator) -> None:
    with pytest.raises(KeyboardInterrupt), Interruption(accelerator):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_launchers_second_sigterm_does_not_kill_a_save(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, acted = [10.0], []
    monkeypatch.setattr("pipeline.interruption.time.monotonic", lambda: now[0])
    previous = signal.signal(signal.SIGTERM, lambda number, frame: acted.append(number))
    try:
        with Interruption(accelerator) as interruption:
            signal.raise_signal(signal.SIGTERM)
            now[0] += 1.5
            signal.raise_signal(signal.SIGTERM)
            assert interruption.signal_number == signal.SIGTERM and not acted
            now[0] += 1.0
            signal.raise_signal(signal.SIGTERM)
            assert acted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_what_nohup_ignores_stays_ignored(accelerator: Accelerator) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(accelerator) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, previous)
