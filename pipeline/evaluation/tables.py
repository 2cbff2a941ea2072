"""An evaluation in words: what a person reads on the screen."""

from collections.abc import Mapping, Sequence

from pipeline.reporting import table
from pipeline.runs.evaluation import Evaluation, Figure, JudgeFacts

_FRACTIONS = (  # in %
    "class_shown",
    "classification_accuracy_score",
    "precision",
    "recall",
    "coverage",
    "near_copies",
    "repeated_codes",
    "codebook_usage",
)
_MOST_CLASSES = 20  # shown


def in_words(evaluation: Evaluation, run: str) -> str:
    """All figures of a run, by name, with their standard errors."""
    sizes = f"{evaluation.images:,} images each, figures +- standard error"
    tested = f"{evaluation.test_images:,} of {evaluation.test_data or 'the test part'}"
    judge = judge_in_words(evaluation.judge)
    facts = table([("run", run), ("judge", judge), ("test images", tested), ("sets", sizes)])
    parts = [facts, figures_in_words("stage 1, on the test images", {"": evaluation.stage1})]
    if evaluation.stage2:
        parts.append(figures_in_words("stage 2, on the test images", {"": evaluation.stage2}))
    if len(evaluation.classes) in range(1, _MOST_CLASSES + 1):
        parts.append(figures_in_words("nats per code of each class", {"": evaluation.classes}))
    if evaluation.settings:
        compared = {str(one.setting): one.figures for one in evaluation.settings}
        parts.append(figures_in_words("against the validation images", compared))
    sets = {"reconstructions": evaluation.reconstructed, "real images": evaluation.floor}
    chosen = evaluation.samples
    samples = {f"samples, {chosen.setting}": chosen.figures} if chosen else {}
    parts.append(figures_in_words("against the test images", samples | sets))
    return "\n\n".join([*parts, *(f"  {note}" for note in evaluation.notes)])


def side_by_side(evaluations: Mapping[str, Evaluation]) -> str:
    """What several runs reach, a column a run."""
    first = next(iter(evaluations.values()))
    samples = {run: one.samples.figures if one.samples else {} for run, one in evaluations.items()}
    stages = {run: {**one.stage1, **one.stage2} for run, one in evaluations.items()}
    sets = samples | {"real images": first.floor}
    return "\n\n".join(
        [figures_in_words("stages 1 and 2", stages), figures_in_words("samples against the test images", sets)]
    )


def judge_in_words(judge: JudgeFacts) -> str:
    """Which judge, what it learned, and how good it is."""
    learned = "classes" if judge.learned == "classes" else "which way images are turned, as there are no classes"
    right = shown_figure("class_shown", judge.accuracy)
    return f"{judge.number}, which learned {learned}: right on {right} of real images"


def figures_in_words(title: str, columns: Mapping[str, Mapping[str, Figure]]) -> str:
    """A table with a column a set of images (or a run), and a row a figure."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows: list[Sequence[str]] = [[title, *columns]]
    for name in names:
        rows.append([f"  {name}", *(shown_figure(name, own[name]) if name in own else "" for own in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def shown_figure(name: str, figure: Figure) -> str:
    """A figure with its standard error, fractions in %."""
    is_fraction = name.split("/")[0] in _FRACTIONS
    value = f"{100 * figure.value:.1f}" if is_fraction else f"{figure.value:.4g}"
    error = "" if figure.error is None else f" +- {100 * figure.error if is_fraction else figure.error:.2g}"
    return f"{value}{error}{' %' if is_fraction else ''}"
