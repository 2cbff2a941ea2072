"""The figures that a verdict rests on, each a number or None where it is not known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.report.records import VALIDATION, Curve, RunRecord, StageRecord
from pipeline.runs.evaluation import Evaluation, Figure
from pipeline.runs.saved import PriorRun

_LEAST_EVALUATIONS = 4  # of a training, before the second half of it says anything
_NOISE = 2  # standard errors by which samples must be further away than real images, before the rest is divided


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is known of a run; fractions are between 0 and 1. Of several levels the worst one counts, and of nats the
    mean over all codes."""

    unfinished: str | None = None  # the stage whose training has not come to its end
    nmse: float | None = None  # of reconstructions of validation images
    nmse_over_training: float | None = None  # validation error over that of the images trained on, at the end
    stage1_second_half: float | None = None  # part of the error that the second half of the training took away
    stage1_steps: int | None = None
    stage1_passes: float | None = None  # how often each training image was seen
    sharp_from_start: str = ""  # the remedy, where stage 1 was trained without
    perplexity: float | None = None
    perplexity_fraction: float | None = None  # of the number of codes
    usage: float | None = None
    continuous: bool = False
    has_prior: bool = False
    nats: float | None = None
    unigram_nats: float | None = None
    gain: float | None = None  # part of the unigram entropy that the prior has explained
    rise: float | None = None  # validation nats of the last evaluation over those of the best, less 1
    best_step: int | None = None
    prior_passes: float | None = None  # how often the codes of each training image were seen, at the level of fewest
    prior_second_half: float | None = None  # part of what the prior gained that came in the second half
    training_images: int | None = None
    evaluated: bool = False
    blur_part: float | None = None  # of the distance between samples and real images, what reconstructions have already
    detail: float | None = None  # high-frequency power of reconstructions over that of images
    class_restored: float | None = None  # class shown by reconstructions over that of real images
    guidance: float | None = None  # of the samples measured
    best_guidance: float | None = None  # of those compared
    recall: float | None = None
    recall_kept: float | None = None  # recall of samples over that of reconstructions
    coverage_kept: float | None = None  # coverage of samples over that of reconstructions
    class_shown: float | None = None
    class_kept: float | None = None  # class shown by samples over that of real images
    near_copies: float | None = None
    distance: float | None = None  # of samples, over that of real images

    def known(self, name: str) -> float | None:
        """A sign as a number."""
        value = getattr(self, name)
        return None if value is None or isinstance(value, str) else float(value)


def signs_of(record: RunRecord) -> Signs:
    """All signs that the files of a run give."""
    found: dict[str, object] = {"unfinished": next((stage.name for stage in record.unfinished), None)}
    found["training_images"] = record.parts[0] if record.parts else None
    found["continuous"] = not record.settings.model.is_discrete
    if record.settings.model.objective != "sharp":
        found["sharp_from_start"] = "; from the start `--objective sharp`"
    found |= _of_stage1(record) | _of_priors(record.priors)
    found["prior_passes"] = min(
        (p for stage in record.priors if (p := _passes(record, stage)) is not None), default=None
    )
    if record.evaluation is not None:
        found |= {"evaluated": True} | _of_evaluation(record.evaluation)
    return Signs(**found)  # type: ignore[arg-type]  # each name and type stands above


def _of_stage1(record: RunRecord) -> dict[str, object]:
    stage, codes = record.vqvae, record.settings.model.num_codes
    metrics, evaluated = stage.metrics(), stage.curve(f"{VALIDATION}nmse")
    found: dict[str, object] = {"nmse": metrics.get("nmse"), "stage1_steps": stage.steps_done or None}
    trained = stage.curve("nmse").values
    if evaluated.values and trained:
        recent = trained[-max(1, len(trained) // 10) :]
        found["nmse_over_training"] = evaluated.values[-1] / max(sum(recent) / len(recent), 1e-9)
    found["stage1_passes"] = _passes(record, stage)
    found["stage1_second_half"] = second_half(evaluated, lambda half, end: 1 - end / half if half > 0 else None)
    if record.settings.model.is_discrete and metrics:
        found["usage"] = _least(metrics, "codebook_usage")
        found["perplexity"] = perplexity = _least(metrics, "perplexity")
        found["perplexity_fraction"] = None if perplexity is None else perplexity / codes
    return found


def _passes(record: RunRecord, stage: StageRecord) -> float | None:
    """How often each training image was seen."""
    if not record.parts or not stage.steps_done:
        return None
    return stage.steps_done * stage.training.batch_size / record.parts[0]


def _least(metrics: dict[str, float], name: str) -> float | None:
    values = [value for key, value in metrics.items() if key.partition("/")[0] == name]
    return min(values, default=None)


def second_half(curve: Curve, change: Callable[[float, float], float | None]) -> float | None:
    """What `change` makes of the value at half of a training, between the evaluations around it, and the best of all.

    >>> second_half(Curve((1, 2, 3, 4), (1.0, 0.5, 0.25, 0.25)), lambda half, end: 1 - end / half)
    0.5
    """
    if len(curve.steps) < _LEAST_EVALUATIONS:
        return None
    return change(float(np.interp(curve.steps[-1] / 2, *curve)), min(curve.values))


def _of_priors(priors: Sequence[StageRecord]) -> dict[str, object]:
    """Means over the levels by their positions; of what may go wrong the level where it is worst."""
    known = [(stage, stage.metrics()) for stage in priors if "nats" in stage.metrics()]
    if not known:
        return {}
    positions = [_positions(stage) for stage, _ in known]

    def mean(name: str) -> float:
        return sum(count * metrics.get(name, 0) for count, (_, metrics) in zip(positions, known, strict=True)) / sum(
            positions
        )

    nats, unigram = mean("nats"), mean("unigram_nats")
    found: dict[str, object] = {"has_prior": True, "nats": nats, "unigram_nats": unigram or None}
    found["gain"] = 1 - nats / unigram if unigram > 1e-6 else None
    rises = [(_rise(stage), stage) for stage, _ in known]
    rise, worst = max(rises, key=lambda one: one[0] if one[0] is not None else -1)
    found |= {"rise": rise, "best_step": _best_step(worst)}
    halves = [half for stage, metrics in known if (half := _prior_half(stage, metrics)) is not None]
    return found | {"prior_second_half": max(halves, default=None)}


def _positions(stage: StageRecord) -> int:
    assert isinstance(stage.settings, PriorRun)
    return stage.settings.model.positions


def _rise(stage: StageRecord) -> float | None:
    values = stage.curve(f"{VALIDATION}nats").values
    return values[-1] / min(values) - 1 if values and min(values) > 0 else None


def _best_step(stage: StageRecord) -> int:
    curve = stage.curve(f"{VALIDATION}nats")
    return min(zip(curve.values, curve.steps, strict=True), default=(0.0, 0))[1]


def _prior_half(stage: StageRecord, metrics: dict[str, float]) -> float | None:
    unigram = metrics.get("unigram_nats", 0.0)
    return second_half(
        stage.curve(f"{VALIDATION}nats"), lambda half, end: (half - end) / (unigram - end) if unigram > end else None
    )


def _of_evaluation(evaluation: Evaluation) -> dict[str, object]:
    samples = evaluation.samples.figures if evaluation.samples else {}
    restored, floor = evaluation.reconstructed, evaluation.floor
    found: dict[str, object] = {"detail": _value(evaluation.stage1, "high_frequency_power")}
    found |= {name: _value(samples, name) for name in ("recall", "class_shown", "near_copies")}
    found["recall_kept"] = _ratio(samples, restored, "recall")
    found["coverage_kept"] = _ratio(samples, restored, "coverage")
    found["class_restored"] = _ratio(restored, floor, "class_shown")
    found["class_kept"] = _ratio(samples, floor, "class_shown")
    name = "frechet_distance" if "frechet_distance" in samples else "kernel_distance"
    if name in samples and name in restored and name in floor:
        found |= _distances(samples[name], restored[name], floor[name])
    if evaluation.samples is not None:
        found["guidance"] = evaluation.samples.setting.guidance
    return found | {"best_guidance": evaluation.best.guidance if evaluation.best else None}


def _value(figures: dict[str, Figure], name: str) -> float | None:
    return figures[name].value if name in figures else None


def _ratio(ours: dict[str, Figure], theirs: dict[str, Figure], name: str) -> float | None:
    above, below = _value(ours, name), _value(theirs, name)
    return None if above is None or not below else above / below


def _distances(samples: Figure, restored: Figure, floor: Figure) -> dict[str, object]:
    """How much further samples are than real images, and which part of that reconstructions have already."""
    further = samples.value - floor.value
    if further <= _NOISE * ((samples.error or 0) ** 2 + (floor.error or 0) ** 2) ** 0.5:
        return {}
    return {"distance": further, "blur_part": max(0.0, (restored.value - floor.value) / further)}
