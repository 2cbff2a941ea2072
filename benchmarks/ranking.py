"""Do the two judges put models and settings into one order?

    python -m benchmarks.ranking RUN...

Reads what `gen evaluate RUN --guidance ...` has written with `--judge 1` and with `--judge 2`: of each run the settings
that both compared on its validation part. Prints one JSON line a figure: the settings from the best to the worst by
each judge, Kendall's tau of the two orders, and the pairs of settings that they order differently, with how many
standard errors of their difference lie between the two by the judge that separates them less.
"""

import json
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from scipy.stats import kendalltau  # type: ignore[import-untyped]  # scipy has no types

from pipeline.errors import UsageError
from pipeline.runs.evaluation import Figure, read_evaluation
from pipeline.runs.layout import RunFolder

_RISING = ("class_shown", "precision", "recall", "density", "coverage")  # better when larger


def settings(run: Path, judge: int) -> dict[str, dict[str, Figure]]:
    """The figures of each setting of a run by a judge. Raises UsageError where it was not evaluated so."""
    found = read_evaluation(RunFolder(run), judge)
    if found is None:
        raise UsageError(f"{run} has no evaluation by judge {judge}: gen evaluate {run} --guidance 1,2 --judge {judge}")
    return {f"{run.name}, {one.setting}": one.figures for one in found.settings}


def apart(one: Figure, other: Figure) -> float:
    """How many standard errors of the difference lie between two figures, as if they were independent."""
    return abs(one.value - other.value) / max(1e-12, ((one.error or 0) ** 2 + (other.error or 0) ** 2) ** 0.5)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(runs: tuple[Path, ...]) -> None:
    """Compare the judges' orders of all settings of some runs."""
    first, second = ({name: own for run in runs for name, own in settings(run, judge).items()} for judge in (1, 2))
    names = sorted(first.keys() & second.keys())
    for figure in sorted(set.intersection(*(set(own[name]) for own in (first, second) for name in names))):
        values = [[own[name][figure].value for name in names] for own in (first, second)]
        sign = -1 if figure in _RISING else 1
        orders = [[names[i] for i in np.argsort(sign * np.array(own), kind="stable")] for own in values]
        differing = {
            f"{a} / {b}": round(min(apart(own[a][figure], own[b][figure]) for own in (first, second)), 2)
            for a, b in combinations(orders[0], 2)
            if orders[1].index(a) > orders[1].index(b)
        }
        tau = float(kendalltau(*values).statistic)
        click.echo(json.dumps({"figure": figure, "tau": round(tau, 3), "orders": orders, "differing": differing}))


if __name__ == "__main__":
    main()
