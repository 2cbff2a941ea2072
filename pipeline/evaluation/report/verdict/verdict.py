"""Which rules hold of a run, and what a report says of it."""

from collections.abc import Sequence
from dataclasses import fields

from pipeline.evaluation.report.blocks import Line, Verdict
from pipeline.evaluation.report.verdict.rules import RULES, Rule
from pipeline.evaluation.report.verdict.signs import Signs


def rules_that_hold(signs: Signs) -> list[Rule]:
    """The rule of each aspect, in the order of the aspects."""
    aspects = dict.fromkeys(rule.aspect for rule in RULES)
    return [
        next(rule for rule in RULES if rule.aspect == aspect and all(one.holds(signs) for one in rule.conditions))
        for aspect in aspects
    ]


def verdict(signs: Signs, run: str) -> Verdict:
    """What limits a run in a sentence, and a line for each aspect."""
    rules = rules_that_hold(signs)
    known = {field.name: getattr(signs, field.name) for field in fields(signs)}
    lines = [
        Line(rule.aspect, rule.emphasis, rule.finding.format(**known), rule.remedy.format(**known).replace("RUN", run))
        for rule in rules
    ]
    return Verdict(_sentence(signs, rules), lines)


def _sentence(signs: Signs, rules: Sequence[Rule]) -> str:
    worst = max(rules, key=lambda rule: rule.weight)
    begun = f"The training of {signs.unfinished} has not come to its end. " if signs.unfinished else ""
    if worst.weight:
        return f"{begun}What limits this model most is {worst.limits}."
    if signs.evaluated:
        return f"{begun}Nothing that was measured limits this model clearly."
    return f"{begun}Nothing in its trainings limits this model clearly; how good its samples are was not measured."
