"""The verdict: each rule holds where it should and not before, is written down, and follows from a run's own files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.splits import load_split
from pipeline.evaluation.report.records import read_record
from pipeline.evaluation.report.verdict.rules import RULES, Rule
from pipeline.evaluation.report.verdict.signs import Signs, signs_of
from pipeline.evaluation.report.verdict.verdict import rules_that_hold, verdict
from pipeline.runs.layout import METRICS, SPLIT
from tests.tiny import TINY_PRIOR, TINY_VQVAE

ROOT = Path(__file__).parents[4]
GOOD: dict[str, Any] = {
    "nmse": 0.05,
    "stage1_second_half": 0.1,
    "stage1_passes": 20.0,
    "prior_passes": 20.0,
    "usage": 1.0,
    "perplexity": 400.0,
    "perplexity_fraction": 0.8,
    "has_prior": True,
    "nats": 4.5,
    "unigram_nats": 6.2,
    "gain": 0.27,
    "rise": 0.0,
    "best_step": 900,
    "prior_second_half": 0.1,
    "training_images": 18_000,
    "nmse_over_training": 1.05,
    "evaluated": True,
    "guidance": 1.5,
    "recall": 0.8,
    "recall_kept": 0.9,
    "coverage_kept": 0.9,
    "class_shown": 0.5,
    "class_kept": 0.8,
    "near_copies": 0.01,
}

# What a good run needs to have otherwise for each rule of something wrong.
WRONG: dict[str, dict[str, Any]] = {
    "not learned": {"nmse": 0.9},
    "blur of most of the distance": {"blur_part": 0.7},
    "blur": {"nmse": 0.2},
    "classes lost": {"class_restored": 0.7},
    "missing detail": {"detail": 0.3},
    "collapsed to one code": {"perplexity": 1.1, "perplexity_fraction": 0.002},
    "collapsed": {"perplexity": 4.0, "perplexity_fraction": 0.008},
    "few codes in use": {"usage": 0.2},
    "overfitted prior": {"rise": 0.2},
    "prior knows little": {"nats": 6.15, "gain": 0.01},
    "prior still learning": {"prior_second_half": 0.4},
    "hardly begun": {"nmse": 0.9, "stage1_steps": 60},
    "too short": {"stage1_second_half": 0.5},
    "few passes": {"stage1_passes": 1.4},
    "few passes of the prior": {"prior_passes": 1.1},
    "few images": {"nmse_over_training": 1.8},
    "few images for the prior": {"rise": 0.2, "training_images": 1000},
    "guidance too strong": {"guidance": 10.0, "recall_kept": 0.2},
    "guidance beyond the data": {"guidance": 20.0, "coverage_kept": 0.1},
    "copies": {"near_copies": 0.4},
    "little variety": {"guidance": 1.0, "recall_kept": 0.2},
    "classes not shown": {"class_kept": 0.3, "class_shown": 0.2},
}
UNKNOWN = {"not evaluated", "unknown codebook", "no prior", "unknown time", "nothing measured"}
KNOWN = {"faithful", "in use", "prior has learned", "enough", "measured"}
CONTINUOUS = {"no codebook", "no prior needed"}


def names(signs: Signs) -> list[str]:
    return [rule.name for rule in rules_that_hold(signs)]


def test_every_rule_is_tried_here() -> None:
    others = {"unmeasured prior", "evaluated without sets"}
    assert {rule.name for rule in RULES} == {*WRONG, *UNKNOWN, *KNOWN, *CONTINUOUS, *others}
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert "unmeasured prior" in names(Signs(has_prior=True)) and "evaluated without sets" in names(
        Signs(evaluated=True)
    )


def test_of_a_good_run_nothing_is_said_to_limit_it() -> None:
    assert set(names(Signs(**GOOD))) == KNOWN
    said = verdict(Signs(**GOOD), "runs/good")
    assert said.sentence == "Nothing that was measured limits this model clearly."
    assert [line.emphasis for line in said.lines] == ["good"] * 5


def test_of_a_run_of_which_nothing_is_known_nothing_is_claimed() -> None:
    assert set(names(Signs())) == UNKNOWN
    said = verdict(Signs(unfinished="vqvae"), "runs/begun")
    assert {line.emphasis for line in said.lines} == {"unknown"} and "has not come to its end" in said.sentence
    assert set(names(Signs(continuous=True))) >= CONTINUOUS


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name in WRONG], ids=lambda rule: rule.name)
def test_a_rule_names_what_is_wrong_and_what_to_try(rule: Rule) -> None:
    """In the place of the line that said good, with the run's name in the commands, and as what limits most."""
    signs = Signs(**GOOD | WRONG[rule.name])
    assert rule.name in names(signs)
    said = verdict(signs, "runs/poor")
    [line] = [line for line in said.lines if line.aspect == rule.aspect]
    assert (
        line.emphasis == "limit" and line.remedy and "RUN" not in line.remedy and "{" not in line.finding + line.remedy
    )
    heaviest = max(rules_that_hold(signs), key=lambda one: one.weight)
    assert said.sentence == f"What limits this model most is {heaviest.limits}."
    assert rule.weight <= heaviest.weight


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name in WRONG], ids=lambda rule: rule.name)
def test_at_its_bounds_a_rule_does_not_hold(rule: Rule) -> None:
    for condition in rule.conditions:
        at_the_bound = Signs(**GOOD | WRONG[rule.name] | {condition.sign: condition.bound})
        assert rule.name not in names(at_the_bound), condition


def test_the_page_of_rules_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "report.md").read_text()
    for rule in RULES:
        conditions = ", ".join(map(str, rule.conditions)) or "else"
        assert f"| {rule.aspect} | {rule.name} | {conditions} | {rule.weight or ''} |" in page, rule.name
    for sign in {condition.sign for rule in RULES for condition in rule.conditions}:
        assert f"`{sign}`" in page


@pytest.mark.parametrize(
    ("stage", "metric", "values", "expected"),
    [
        ("prior/0", "nats", [2.0, 1.0, 1.2, 1.5], "overfitted prior"),
        ("prior/0", "nats", [2.4, 2.3, 2.0, 1.2], "prior still learning"),
        ("vqvae", "nmse", [0.8, 0.4, 0.2, 0.1], "too short"),
        ("vqvae", "nmse", [0.4, 0.11, 0.1, 0.1], "enough"),
    ],
)
def test_a_verdict_follows_from_what_was_logged(
    trained: Path, tmp_path: Path, stage: str, metric: str, values: list[float], expected: str
) -> None:
    """Evaluations of a quarter, a half, three quarters and all of the steps, in place of those of a run that saw its
    images often enough."""
    run = shutil.copytree(trained, tmp_path / "run")
    lines = [
        json.dumps({"step": 3 * (i + 1), metric: value, f"validation_{metric}": value})
        for i, value in enumerate(values)
    ]
    (run / stage / METRICS).write_text("\n".join([*lines, '{"step": 12, "broken\n']))
    validation = json.loads((run / stage / "validation.json").read_text())
    validation["metrics"]["values"] |= {metric: min(values)} | ({"unigram_nats": 2.5} if metric == "nats" else {})
    (run / stage / "validation.json").write_text(json.dumps(validation))
    assert expected in names(replace(signs_of(read_record(run)), stage1_passes=20.0, prior_passes=20.0))


def test_passes_are_steps_of_images_over_those_trained_on(trained: Path) -> None:
    record = read_record(trained)
    assert record.parts is not None
    signs, split = signs_of(record), load_split(trained / "vqvae" / SPLIT)
    assert signs.stage1_passes == TINY_VQVAE["steps"] * TINY_VQVAE["batch_size"] / len(split.train)
    assert signs.prior_passes == TINY_PRIOR["steps"] * TINY_PRIOR["batch_size"] / len(split.train)


def test_a_sharp_objective_is_advised_only_where_it_is_not_in_use(trained: Path) -> None:
    blurred = replace(signs_of(read_record(trained)), nmse=0.2)
    assert "--objective sharp" in verdict(blurred, "run").lines[0].remedy
    assert "--objective sharp" not in verdict(replace(blurred, sharp_from_start=""), "run").lines[0].remedy
