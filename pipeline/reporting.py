"""What a person sees while a command runs. The API is silent by default; the command line passes a Console."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import click
from tqdm import tqdm


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
    """Lines and a progress bar on the standard error stream, so that results can be piped."""

    def __init__(self) -> None:
        self._bar: tqdm[int] | None = None

    def say(self, text: str) -> None:
        """A line; it does not break the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            click.echo(text, err=True)

    def steps(self, steps: range, description: str) -> Iterator[int]:
        """The steps under a bar with rate and time left."""
        with tqdm(total=steps.stop, initial=steps.start, desc=description, unit="step", dynamic_ncols=True) as bar:
            self._bar = bar
            for step in steps:
                yield step
                bar.update()
        self._bar = None

    def show(self, values: Mapping[str, float]) -> None:
        """The values at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(_value(name, value) for name, value in values.items()), refresh=False)


def _value(name: str, value: float) -> str:
    return f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two aligned columns."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in pairs)
