"""What a run is, what was measured of it, and which commands made it, as tables."""

import shlex
from collections.abc import Mapping, Sequence

from pipeline.config.options import flatten
from pipeline.evaluation.report.blocks import Block, Commands, Missing, Section, Table
from pipeline.evaluation.report.records import RunRecord, StageRecord
from pipeline.evaluation.tables import judge_in_words, shown_figure
from pipeline.runs.evaluation import Evaluation, Figure
from pipeline.runs.saved import PriorRun, VQVAERun, codes_in_words, images_in_words, network_in_words

_MOST_CLASSES = 20
_MEANINGS = {
    "frechet_distance": ("between Gaussians fitted to the features of a set and of test images", "low"),
    "kernel_distance": ("the same by a cubic kernel, also for few images; may be below 0", "low"),
    "precision": ("the part that lies where real images lie", "high"),
    "density": ("how densely it lies there", "high"),
    "recall": ("how much of the real images it reaches", "high"),
    "coverage": ("how many real images have one of it near", "high"),
    "class_shown": ("the part in which the judge sees the class that it should show", "high"),
    "classification_accuracy_score": ("how often a classifier trained on this set is right on test images", "high"),
    "nearest_distance": ("to the nearest training image: root mean squared difference of pixels", "like real images"),
    "near_copies": ("as near to a training image as the nearest 1 % of reconstructions", "about 1 %"),
    "repeated_codes": ("code maps that equal one trained on", "like reconstructions"),
    "nmse": ("squared error of reconstructions over the variance of the pixels", "0"),
    "psnr": ("the error of reconstructions, in dB", "high"),
    "ssim": ("likeness of structure to the originals", "1"),
    "high_frequency_power": ("of reconstructions over that of images; blur takes it below 1", "1"),
    "nats_per_code": ("what a code costs under the prior; not comparable between codebooks", "low"),
    "bits_per_image": ("what an image costs under the prior", "low"),
    "bits_per_dim": ("codes and pixels together; comparable between models", "low"),
}
_SETTLED = ("max_minutes", "micro_batches", "memory_gib")  # by the machine, or turned into steps


def facts_section(record: RunRecord) -> Section:
    """What this model is."""
    model, data = record.settings.model, record.settings.data
    classes = record.settings.class_names
    rows = [("images", images_in_words(model)), ("codes", codes_in_words(model)), ("data", data.data)]
    rows.append(("classes", _named(classes) if classes else "none"))
    if record.parts:
        train, validation, test = record.parts
        rows.append(("parts", f"{train:,} training, {validation:,} validation, {test:,} test"))
    rows += [(stage.name, _training(stage)) for stage in record.stages]
    return Section("facts", "What this model is", [Table("The model", ("", ""), rows, "")])


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:_MOST_CLASSES])
    return shown if len(classes) <= _MOST_CLASSES else f"{shown} and {len(classes) - _MOST_CLASSES:,} more"


def _training(stage: StageRecord) -> str:
    settings, training = stage.settings, stage.training
    kind = ""
    if isinstance(settings, PriorRun):
        kind = (
            f"{network_in_words(settings.model)}, {settings.model.layers} layers of {settings.model.hidden} channels; "
        )
    steps = f"{stage.steps_done:,}" + (f" of {training.steps:,}" if training.steps else "")
    end = "" if stage.validation else ", unfinished"
    return f"{kind}{steps} steps of {training.batch_size}, seed {training.seed}{end}"


def evaluation_section(record: RunRecord, differing: Sequence[str]) -> Section:
    """The figures of `gen evaluate`, beside real images and reconstructions."""
    title, evaluation = "How good it is", record.evaluation
    command = f"gen evaluate {record.folder.path} --guidance 1,1.5,2"
    if evaluation is None:
        return Section("evaluation", title, [Missing("Not evaluated", f"Nothing has been measured yet: {command}")])
    blocks: list[Block] = list(_figures(evaluation))
    if differing:
        text = f"The figures below are of other weights than these ({'; '.join(differing)}): {command}"
        blocks.insert(0, Missing("Out of date", text))
    return Section("evaluation", title, blocks)


def _figures(evaluation: Evaluation) -> list[Table]:
    chosen = evaluation.samples
    sets = {"samples": chosen.figures} if chosen else {}
    sets |= {"reconstructions": evaluation.reconstructed, "real images": evaluation.floor}
    notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in evaluation.notes)
    setting = f" Samples are of {chosen.setting}." if chosen else ""
    tables = [
        figure_table(
            f"Sets of {evaluation.images:,} against test images",
            sets,
            "Real images are the floor: a perfect model would be about there, and samples cannot pass reconstructions "
            f"by much.{setting}{notes}",
        ),
        figure_table(
            f"On {evaluation.test_images:,} test images",
            {"value": {**evaluation.stage1, **evaluation.stage2}},
            f"Judge {judge_in_words(evaluation.judge)}.",
        ),
        _meanings({**(chosen.figures if chosen else {}), **evaluation.stage1, **evaluation.stage2}),
    ]
    if evaluation.settings:
        compared = {str(one.setting): one.figures for one in evaluation.settings}
        best = f" The best is {evaluation.best}, by its distance." if evaluation.best else ""
        tables.append(figure_table("Settings compared on validation images", compared, f"What was chosen from.{best}"))
    if len(evaluation.classes) in range(1, _MOST_CLASSES + 1):
        tables.append(
            figure_table(
                "Nats per code by class",
                {"nats": evaluation.classes},
                "What the codes of test images of a class cost. Cluttered pictures cost more however well they are "
                "learned: compare a class with itself in another run.",
            )
        )
    return tables


def _meanings(shown: Mapping[str, Figure]) -> Table:
    """What the figures are."""
    rows = [(name.replace("_", " "), *_MEANINGS[name]) for name in shown if name in _MEANINGS]
    return Table(
        "What the figures are",
        ("", "what it says", "better"),
        rows,
        "The judge is a small classifier that learned from the real training images alone; sets of images are "
        "compared in its features, so that distances say which of two models of the same data is better, and are "
        "not FID. "
        "Real images are the validation images, in place of samples. What follows ± is one standard error.",
    )


def figure_table(title: str, columns: Mapping[str, Mapping[str, Figure]], sentence: str) -> Table:
    """A row a figure, a column a set of images or a run."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [
        (name.replace("_", " "), *(shown_figure(name, own[name]) if name in own else "" for own in columns.values()))
        for name in names
    ]
    return Table(title, ("", *columns), [[cell.replace("+-", "±") for cell in row] for row in rows], sentence, True)


def commands_section(record: RunRecord) -> Section:
    """What to type to make the run again: every option as it was saved."""
    run = shlex.quote(str(record.folder.path))
    commands = [command_of(record.vqvae, ["gen", "train-vqvae", "--out", run])]
    if record.sharp is not None:
        commands.append(command_of(record.sharp, ["gen", "sharpen", run]))
    for stage in record.priors:
        level = ["--level", stage.name.rpartition("/")[2]] if record.settings.model.levels > 1 else []
        commands.append(command_of(stage, ["gen", "train-prior", run, *level]))
    if record.evaluation is not None:
        commands.append(_evaluate(record.evaluation, run))
    sentence = "Every option is written out as config.json has it, so that defaults which change do not matter."
    return Section("commands", "How to make it again", [Commands("Commands", commands, sentence)])


def command_of(stage: StageRecord, beginning: Sequence[str]) -> str:
    """The command that trains a stage with the options that it was trained with."""
    return " ".join([*beginning, *_flags(_options(stage))])


def _options(stage: StageRecord) -> dict[str, object]:
    settings = stage.settings
    if isinstance(settings, VQVAERun):
        saved = flatten(settings.data, settings.model, settings.training)
        return saved if settings.init is None else {"init": settings.init.run} | saved
    if isinstance(settings, PriorRun):
        return flatten(settings.model, settings.training, settings.augmentation)
    return flatten(settings.objective, settings.training)


def _flags(options: Mapping[str, object]) -> list[str]:
    words = []
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if value is None or name in _SETTLED:
            continue
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            words.append(f"--{dashed} {shlex.quote(str(value))}")
    return words


def _evaluate(evaluation: Evaluation, run: str) -> str:
    settings = evaluation.settings or ([evaluation.samples] if evaluation.samples else [])
    guidance = dict.fromkeys(f"{one.setting.guidance:g}" for one in settings)
    temperature = dict.fromkeys(f"{one.setting.temperature:g}" for one in settings)
    schedule = dict.fromkeys(one.setting.guidance_schedule for one in settings)
    given = {
        "guidance": ",".join(guidance),
        "guidance-schedule": "" if list(schedule) == ["constant"] else ",".join(schedule),
        "temperature": ",".join(temperature),
    }
    flags = [f"--{name} {value}" for name, value in given.items() if value]
    data = [f"--test-data {shlex.quote(evaluation.test_data)}"] if evaluation.test_data else []
    words = ["gen evaluate", run, *flags, *data, f"--n {evaluation.images}", f"--seed {evaluation.seed}"]
    return " ".join([*words, f"--judge {evaluation.judge.number}"])
