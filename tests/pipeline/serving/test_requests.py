"""Requests are answered one after another, and end when nobody waits for them any longer."""

import threading
from collections.abc import Callable

import pytest

from pipeline.serving.requests import Requests, StoppedError


def test_answers_come_as_they_are_shown_and_last_what_is_returned() -> None:
    def work(show: Callable[[int], None]) -> int:
        for number in range(3):
            show(number)
        return 3

    assert list(Requests().answers(work)) == [0, 1, 2, 3]


def test_what_the_work_raises_is_raised_where_it_is_waited_for() -> None:
    def work(show: Callable[[int], None]) -> int:
        show(1)
        raise KeyError("gone")

    answers = Requests().answers(work)
    assert next(answers) == 1
    with pytest.raises(KeyError, match="gone"):
        next(answers)


def test_closing_ends_the_work_the_next_time_that_it_shows_something() -> None:
    requests, ended, closed = Requests(), threading.Event(), threading.Event()

    def endless(show: Callable[[int], None]) -> int:
        try:
            show(0)
            assert closed.wait(10)
            show(1)
            raise AssertionError("it goes on")
        except StoppedError:
            ended.set()
            raise

    answers = requests.answers(endless)
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]
    closed.set()
    assert list(requests.answers(lambda _: 7)) == [7]
    assert ended.is_set()


def test_a_request_waits_for_the_one_before_it_and_is_not_begun_if_closed() -> None:
    requests, go, done = Requests(), threading.Event(), list[str]()

    def first(show: Callable[[str], None]) -> str:
        show("begun")
        assert go.wait(10)
        done.append("first")
        return "first"

    def second(_: Callable[[str], None]) -> str:
        done.append("second")
        return "second"

    answers = requests.answers(first)
    assert next(answers) == "begun"
    later = threading.Thread(target=lambda: done.append(f"seen {list(requests.answers(second))}"))
    later.start()
    go.set()
    assert list(answers) == ["first"]
    later.join(10)
    assert done == ["first", "second", "seen ['second']"]
    requests.close()


def test_closing_all_stops_what_is_at_work() -> None:
    requests, ended = Requests(), threading.Event()

    def endless(show: Callable[[int], None]) -> int:
        try:
            while True:
                show(0)
        except StoppedError:
            ended.set()
            raise

    answers = requests.answers(endless)
    assert next(answers) == 0
    requests.close()
    assert ended.is_set()
