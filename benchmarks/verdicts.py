"""Does a report's verdict name what is wrong with a model? Eight runs, of which six are made to fail in a known way.

    python -m benchmarks.verdicts --data mnist.zip --out FOLDER

All but two are of the embedded digits and take about a minute; the two whose samples are guided are of `--data`, images
of at least 2,000 with folders as classes, and share a training. Prints a JSON line for each: what was done, the rule
that should hold of the aspect, the rules that do, and what the page says limits the model. `--only NAME` makes one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from pipeline import evaluate, train_prior, train_vqvae
from pipeline.evaluation.report.records import read_record
from pipeline.evaluation.report.verdict.signs import signs_of
from pipeline.evaluation.report.verdict.verdict import rules_that_hold, verdict

GOOD = {"faithful", "in use", "prior has learned", "enough", "measured", "evaluated without sets"}


class Case(NamedTuple):
    """A run, and the rules of which one at least should hold; of a good run no other rules than those may."""

    make: Callable[[Path, str], None]
    expected: frozenset[str]


def digits(run: Path, _: str) -> None:
    """The defaults of both stages."""
    train_vqvae(out=run, validation=0.1, test=0.1)
    train_prior(run)
    evaluate(run)


def collapsed(run: Path, _: str) -> None:
    """A codebook learned by gradient, far too fast, without revival. A prior would be refused."""
    train_vqvae(out=run, codebook_rule="gradient", learning_rate=0.03, revival_ends=0.0, steps=300)


def stopped_early(run: Path, _: str) -> None:
    """A tenth of the steps of stage 2."""
    train_vqvae(out=run)
    train_prior(run, steps=70)


def overfitted(run: Path, _: str) -> None:
    """No dropout, 900 images, and nothing that ends it."""
    train_vqvae(out=run, validation=0.5)
    train_prior(run, dropout=0.0, label_dropout=0.0, weight_decay=0.0, steps=1500, patience=0)


def blurred(run: Path, _: str) -> None:
    """Four codes for maps of 2x2."""
    train_vqvae(out=run, num_codes=4, downsampling=16, validation=0.1, test=0.1)
    train_prior(run)
    evaluate(run)


def too_short(run: Path, _: str) -> None:
    """A twentieth of the steps of stage 1."""
    train_vqvae(out=run, steps=60, evaluations=10)
    train_prior(run, steps=300)


def guided(scale: float) -> Callable[[Path, str], None]:
    """A short training of both stages, sampled with this guidance."""

    def make(run: Path, data: str) -> None:
        if not run.exists():
            train_vqvae(out=run, data=data, validation=0.1, test=0.1, steps=2500)
            train_prior(run, steps=3000)
        evaluate(run, guidance=(scale,))

    return make


CASES = {
    "digits": Case(digits, frozenset(GOOD)),
    "collapsed": Case(collapsed, frozenset({"collapsed", "collapsed to one code"})),
    "stopped-early": Case(
        stopped_early, frozenset({"prior still learning", "prior knows little", "few passes of the prior"})
    ),
    "overfitted": Case(overfitted, frozenset({"overfitted prior"})),
    "blurred": Case(blurred, frozenset({"blur", "blur of most of the distance", "classes lost", "missing detail"})),
    "too-short": Case(too_short, frozenset({"too short", "not learned"})),
    "guided": Case(guided(1.5), frozenset(GOOD)),
    "guided-far-too-strongly": Case(guided(20.0), frozenset({"guidance too strong", "guidance beyond the data"})),
}


def judged(name: str, folder: Path, data: str) -> dict[str, object]:
    """Make a run, and what its report says of it."""
    case = CASES[name]
    run = folder / name.partition("-far-")[0]
    case.make(run, data)
    signs = signs_of(read_record(run))
    found = rules_that_hold(signs)
    worst = max(found, key=lambda rule: rule.weight)
    right = {rule.name for rule in found} <= GOOD if case.expected == GOOD else worst.name in case.expected
    return {
        "case": name,
        "right": right,
        "rules": {rule.aspect: rule.name for rule in found},
        "sentence": verdict(signs, "RUN").sentence,
    }


@click.command()
@click.option("--data", required=True, help="Images for the runs that are guided.")
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--only", type=click.Choice(list(CASES)), multiple=True, help="Of these cases alone.")
def main(data: str, folder: Path, only: tuple[str, ...]) -> None:
    """Make the runs, and print what each report says."""
    for name in only or CASES:
        print(json.dumps(judged(name, folder, data)), flush=True)


if __name__ == "__main__":
    main()
