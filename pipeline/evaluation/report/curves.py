"""The trainings of a run as curves, each with what it means."""

from collections.abc import Sequence
from itertools import pairwise

from pipeline.evaluation.report.blocks import Block, Chart, Charts, Missing, Section
from pipeline.evaluation.report.charts import Level, Series, line_chart
from pipeline.evaluation.report.records import VALIDATION, RunRecord, StageRecord
from pipeline.runs.overview import duration
from pipeline.runs.saved import PriorRun


def training_sections(record: RunRecord) -> list[Section]:
    """The curves of every stage that has been begun."""
    stage1 = [block for stage in record.stages if not isinstance(stage.settings, PriorRun) for block in _stage1(stage)]
    stage2 = [block for stage in record.priors for block in _prior(stage)]
    if not record.priors and record.settings.model.is_discrete:
        stage2 = [Missing("No prior", f"Stage 2 has not been begun: gen train-prior {record.folder.path}")]
    sections = [Section("curves-1", "How stage 1 learned", stage1)]
    return [*sections, Section("curves-2", "How the prior learned", stage2)] if stage2 else sections


def _stage1(stage: StageRecord) -> list[Block]:
    charts = [_error(stage), *_codebook(stage), *_discriminator(stage), _throughput(stage)]
    return _block(stage, charts)


def _prior(stage: StageRecord) -> list[Block]:
    return _block(stage, [_nats(stage), _throughput(stage)])


def _block(stage: StageRecord, charts: Sequence[Chart | None]) -> list[Block]:
    drawn = [chart for chart in charts if chart is not None]
    return [Charts(drawn)] if drawn else [Missing(stage.name, f"{stage.name} has logged nothing yet.")]


def _marks(stage: StageRecord) -> list[tuple[str, int]]:
    kept = [("kept", stage.validation.step)] if stage.validation else []
    return kept + ([("resumed", stage.resumed_at)] if stage.resumed_at else [])


def _series(stage: StageRecord, names: dict[str, str]) -> list[Series]:
    """Those of the metrics that were logged, by name; evaluations with points."""
    found = [Series(shown, stage.curve(name), name.startswith(VALIDATION)) for name, shown in names.items()]
    return [one for one in found if one.curve.steps]


def _history(stage: StageRecord) -> str:
    """Which weights were kept, of how many steps, and where the training went on, as far as it is known."""
    total = f" of {stage.training.steps:,}" if stage.training.steps else ""
    done = f"{stage.steps_done:,}{total} steps were done"
    if stage.validation is None:
        text = f"{done}; the training has not come to its end."
    elif stage.validation.step == stage.steps_done:
        text = f"{done}, and the last weights were kept."
    else:
        text = f"{done}, and the weights of step {stage.validation.step:,} were kept."
    return text + (f" The last command went on from step {stage.resumed_at:,}." if stage.resumed_at else "")


def _error(stage: StageRecord) -> Chart | None:
    series = _series(stage, {"nmse": "training", f"{VALIDATION}nmse": "validation"})
    if not series:
        return None
    svg = line_chart(series, alt=f"NMSE of {stage.name} over its steps", marks=_marks(stage), logarithmic=True)
    sentence = (
        f"Both curves should fall together and flatten. Validation above training, and further so with time, means "
        f"that there are too few images; a steep end means too few steps. {_history(stage)}"
    )
    return Chart(f"Error of reconstructions (NMSE), {stage.name}", svg, sentence)


def _codebook(stage: StageRecord) -> list[Chart]:
    names = sorted({name for line in stage.lines for name in line if name.startswith(f"{VALIDATION}perplexity")})
    perplexity = _series(stage, {name: _of_level("perplexity", name) for name in names[:4]})
    used = [name.replace("perplexity", "codebook_usage") for name in names[:4]]
    usage = _series(stage, {name: _of_level("usage", name) for name in used})
    charts = []
    if perplexity:
        svg = line_chart(perplexity, alt=f"perplexity of the codes of {stage.name} over its steps")
        sentence = (
            "As how many equally frequent codes they count. It should rise early and stay; a fall towards 1 is a "
            "codebook that collapses."
        )
        charts.append(Chart("Perplexity of the codes", svg, sentence))
    if usage:
        svg = line_chart(usage, alt=f"codebook usage of {stage.name} over its steps")
        sentence = "The part of the codes that occurs at all. Near 1 is good; below a half the codebook is too large."
        charts.append(Chart("Codebook usage", svg, sentence))
    return charts


def _of_level(name: str, metric: str) -> str:
    _, _, level = metric.partition("/")
    return f"{name}, level {level}" if level else name


def _discriminator(stage: StageRecord) -> list[Chart]:
    accuracy = _series(stage, {"discriminator_accuracy": "judged rightly"})
    if not accuracy:
        return []
    svg = line_chart(accuracy, alt=f"accuracy of the discriminator of {stage.name}", levels=[Level("chance", 0.5)])
    sentence = (
        "The part of patches that the discriminator judges rightly. Between .5 and .97 it teaches the decoder; near 1 "
        "it has won and teaches nothing, at .5 it has lost."
    )
    return [Chart("The discriminator's balance", svg, sentence)]


def _nats(stage: StageRecord) -> Chart | None:
    series = _series(stage, {"nats": "training", f"{VALIDATION}nats": "validation"})
    if not series:
        return None
    metrics = stage.metrics()
    known = {"uniform": metrics.get("uniform_nats"), "unigram": metrics.get("unigram_nats")}
    levels = [Level(name, value) for name, value in known.items() if value is not None]
    svg = line_chart(series, alt=f"nats per code of {stage.name} over its steps", levels=levels, marks=_marks(stage))
    sentence = (
        "What a code costs. Uniform is knowing nothing, unigram knowing how frequent each code is; the further below, "
        "the more of their order is known. Validation that turns upwards while training falls is overfitting. "
        f"{_history(stage)}"
    )
    return Chart(f"Nats per code, {stage.name}", svg, sentence)


def _throughput(stage: StageRecord) -> Chart | None:
    series = _series(stage, {"images_per_second": "images per second"})
    if not series:
        return None
    rates, steps = series[0].curve.values, series[0].curve.steps
    batch = stage.training.batch_size
    spans = zip(pairwise((0, *steps)), rates, strict=True)
    seconds = sum((end - start) * batch / rate for (start, end), rate in spans if rate > 0)
    svg = line_chart(series, alt=f"images per second of {stage.name} over its steps")
    sentence = (
        f"About {duration(seconds)} of steps, evaluations not counted, with {batch:,} images a step. Dips are other "
        "work on the machine; a slow start alone is the reading of the images."
    )
    return Chart("Throughput", svg, sentence)
