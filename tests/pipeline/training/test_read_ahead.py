"""Batches made a step ahead are those of their step."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pipeline.training.loop.read_ahead import ReadAhead

LAST, GPU = 9, torch.device("cuda")


class Making:
    """Makes the batches of a step, and notes in which thread."""

    def __init__(self) -> None:
        self.made: list[tuple[int, bool]] = []

    def __call__(self, step: int) -> Sequence[Tensor]:
        if step == 7:
            raise OSError("no such image")
        self.made.append((step, threading.current_thread() is threading.main_thread()))
        return [torch.full((2,), step), torch.full((1,), -step)]


def test_each_step_gets_its_own_whatever_was_asked_for_before() -> None:
    ahead = ReadAhead(Making(), GPU)
    for step in (0, 1, 2, 5, 6, 0, 1, 8, 9, 9):
        first, second = ahead.of_step(step, LAST)
        assert first.tolist() == [step, step] and second.tolist() == [-step]


def test_the_next_step_is_made_in_a_thread_and_none_beyond_the_last() -> None:
    making = Making()
    ahead = ReadAhead(making, GPU)
    for step in (3, 4, 8, 9):
        ahead.of_step(step, LAST)
    ahead._thread.shutdown()
    assert sorted(making.made) == [(3, True), (4, False), (5, False), (8, True), (9, False)]


def test_what_fails_ahead_fails_in_its_step() -> None:
    ahead = ReadAhead(Making(), GPU)
    ahead.of_step(6, LAST)
    with pytest.raises(OSError, match="no such image"):
        ahead.of_step(7, LAST)


def test_a_thread_that_is_closed_ends() -> None:
    ahead = ReadAhead(Making(), GPU)
    ahead.of_step(0, LAST)
    ahead.close()
    [thread] = ahead._thread._threads
    thread.join(5)
    assert not thread.is_alive() and ahead._next is None


def test_on_a_cpu_each_step_makes_its_own() -> None:
    making = Making()
    ahead = ReadAhead(making, torch.device("cpu"))
    assert [int(ahead.of_step(step, LAST)[0][0]) for step in (0, 1, 4)] == [0, 1, 4]
    assert making.made == [(0, True), (1, True), (4, True)]
