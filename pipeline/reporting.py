"""What a person sees while a command or a training runs: on standard error, so that results can be piped."""

import builtins
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import click
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Reporter(Protocol):
    """Says lines, and shows how far a loop is."""

    def say(self, text: str) -> None:
        """Show a line or a few."""

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """Go through steps, showing progress."""

    def show(self, values: Mapping[str, float]) -> None:
        """Show the latest values beside the progress."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """The steps alone."""
        return iter(steps)

    def show(self, values: Mapping[str, float]) -> None:
        """Nothing."""


class Console:
    """Lines and a progress bar, for a terminal or a notebook."""

    def __init__(self) -> None:
        self._set_postfix: Callable[[str, bool], None] | None = None  # of the bar, while there is one

    def say(self, text: str) -> None:
        """A line; it does not break the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            click.echo(text, err=True)

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """The steps under a bar with rate and time left."""
        with tqdm(total=steps.stop, initial=steps.start, desc=description, unit="step", dynamic_ncols=True) as bar:
            self._set_postfix = bar.set_postfix_str
            for step in steps:
                yield step
                bar.update()
        self._set_postfix = None

    def show(self, values: Mapping[str, float]) -> None:
        """The values at the end of the bar."""
        if self._set_postfix is not None:
            self._set_postfix(_in_words(values), False)


class Lines:
    """Lines alone, for a log file: of a loop one every half minute."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A line."""
        click.echo(text, err=True)

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """The steps, with a line every so often that says how many are done and how long the others will take."""
        started = said = time.monotonic()
        self._values = {}
        for step in steps:
            yield step
            now, done = time.monotonic(), step + 1 - steps.start
            if now - said >= _SECONDS_BETWEEN_LINES and step + 1 < steps.stop:
                minutes = (now - started) / done * (steps.stop - step - 1) / 60
                rest = f"{_in_words(self._values)}  " if self._values else ""
                self.say(f"{description}: {step + 1:,} of {steps.stop:,}  {rest}{minutes:.1f} min left")
                said = now

    def show(self, values: Mapping[str, float]) -> None:
        """The values in the next line."""
        self._values = dict(values)


def reporter_for_command(quiet: bool) -> Reporter:
    """A bar in a terminal, lines elsewhere; nothing if `quiet`, and on all processes but the first."""
    if quiet or not is_main_process():
        return Silent()
    return Console() if _is_terminal() else Lines()


def reporter_for_api() -> Reporter:
    """A bar in a terminal or a notebook; nothing elsewhere, and on all processes but the first."""
    in_notebook = hasattr(builtins, "__IPYTHON__")
    return Console() if is_main_process() and (_is_terminal() or in_notebook) else Silent()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None: the caller has closed it


def is_main_process() -> bool:
    """Whether this is the process that speaks, as launchers number them."""
    return os.environ.get("RANK", "0") == "0"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two aligned columns."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in pairs)


def _in_words(values: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in values.items()
    )
