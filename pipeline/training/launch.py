"""What both trainings have in common around the loop: their options, their folder, their beginning and end."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from pipeline import processes
from pipeline.arithmetic import deterministic
from pipeline.config.options import OptionDict, Options, read_config_file
from pipeline.config.presets import PRESETS
from pipeline.config.training import TrainingConfig
from pipeline.errors import InterruptedRunError, UsageError
from pipeline.interruption import signals_held
from pipeline.randomness import Purpose, number
from pipeline.reporting import Reporter, table
from pipeline.resources import check_disk
from pipeline.runs.card import write_card
from pipeline.runs.layout import CHECKPOINTS, IN_PROGRESS, RunFolder
from pipeline.runs.saved import PriorRun, StageRun, VQVAERun, as_json, read_config
from pipeline.runs.status import StatusFile
from pipeline.runs.validation import Metrics
from pipeline.storage import write_json
from pipeline.training.cost.budget import Timed, expected_memory, steps_within
from pipeline.training.cost.memory import Model, check_training_fits, multiply_adds
from pipeline.training.loop.checkpoint import disk_needed, publish, remove_left_behind
from pipeline.training.loop.task import Batch, ReportedT
from pipeline.training.loop.trainer import Ended, Trainer
from pipeline.training.resume import BOTH_LENGTHS, checkpoint_to_resume
from pipeline.training.tracking import tracked


@dataclass(frozen=True)
class Trained:
    """A finished training: the run folder, the steps done in all, and the best evaluation on the validation part.

    Of several levels of priors, `validation.levels` has the values of each, none of those that were left alone.
    """

    run: Path
    steps: int
    validation: Metrics


@dataclass(frozen=True)
class Launch:
    """A training as it was asked for: by whom it is done, what was given, and what it goes on from."""

    options: Options
    accelerator: Accelerator
    reporter: Reporter
    resume: str | None
    started: float = field(default_factory=time.perf_counter)


def resolve_options(
    stage: str,
    options: Options,
    preset: str,
    config: str | Path | None,
    configs: tuple[type, ...],
    network: Options | None = None,
) -> OptionDict:
    """Options in order of precedence: given, from a saved config.json, of a `network` that is begun from, from the
    preset. Raises UsageError."""
    sizes = {str(name): values for name, values in PRESETS.items()}
    if not isinstance(preset, str) or preset not in sizes:
        raise UsageError(f"there is no preset {preset!r:.60}; choose one of {', '.join(PRESETS)}")
    if {"steps", "max_minutes"} <= options.keys():
        raise UsageError(BOTH_LENGTHS)
    resolved: OptionDict = {**sizes[preset].defaults(stage, options), **(network or {})}
    resolved |= read_config_file(Path(config), stage, *configs) if config else {}
    if "max_minutes" in options:
        resolved.pop("steps", None)
    return {**resolved, **options}


def fit_to_processes(training: TrainingConfig, accelerator: Accelerator) -> TrainingConfig:
    """Settle what depends on the machine at the first start: the micro-batches and the precision."""
    parts = training.micro_batches or accelerator.num_processes
    precision = processes.resolve_precision(training.precision, accelerator.device)
    if training.batch_size % parts:
        raise UsageError(
            f"--batch-size {training.batch_size} is not divisible by {parts}, one micro-batch for each process; "
            f"choose {parts * max(1, training.batch_size // parts)}"
        )
    check_processes(replace(training, micro_batches=parts), accelerator)
    return replace(training, micro_batches=parts, precision=precision)


def check_processes(training: TrainingConfig, accelerator: Accelerator) -> None:
    """Raise UsageError unless the micro-batches can be divided evenly over the processes."""
    parts = training.micro_batches or 1
    if parts % accelerator.num_processes:
        raise UsageError(
            f"this training has {parts} micro-batches a step, which cannot be divided evenly over "
            f"{accelerator.num_processes} processes; launch a number that divides {parts}, or start with other "
            "--micro-batches"
        )


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Initial weights as a function of the seed; the caller's random numbers are left as they were."""
    with torch.random.fork_rng([]):  # weights are made on the CPU
        torch.manual_seed(number(seed, Purpose.WEIGHTS))
        yield


def check_fits(launch: Launch, settings: VQVAERun | PriorRun) -> None:
    """Raise ResourceError, on every process alike, when a training needs more memory than there is on any of them."""
    device = launch.accelerator.device
    processes.alike(launch.accelerator, lambda: check_training_fits(settings, device), str, "the memory")


def train_and_publish(
    launch: Launch,
    status: StatusFile,
    trainer: Trainer[Batch, ReportedT],
    run: RunFolder,
    settings: StageRun,
    facts: list[tuple[str, str]],
    published: list[str],
) -> Trained:
    """Initialise or resume, say what is about to happen, train, and make the best weights the stage's model.

    `facts` are shown at the start; `published` are files in the stage's folder that belong to its model. Raises
    DivergedError, and InterruptedRunError on a signal.
    """
    name = str(trainer.folder.relative_to(run.path))
    status.begin(name)
    with deterministic(trainer.device) if trainer.config.deterministic else nullcontext():
        settings = _begin(launch, trainer, settings, facts)
        trainer.logged = status.reach
        status.begin(name, trainer.state.record.step, trainer.state.record.total_steps)
        with tracked(launch.accelerator, run, trainer.folder, settings, trainer.state.record.step):
            ended = trainer.run()
    status.reach(trainer.state.record.step)
    _report_end(trainer, ended)

    def finish() -> None:
        with signals_held():
            publish(trainer.folder, settings, trainer.state.record, published)
        write_card(run)

    processes.on_main(launch.accelerator, finish)
    assert trainer.state.record.best is not None
    return Trained(run.path, trainer.state.record.step, trainer.state.record.best)


def _begin(
    launch: Launch, trainer: Trainer[Batch, ReportedT], settings: StageRun, facts: list[tuple[str, str]]
) -> StageRun:
    """Initialise or resume, settle the number of steps, and write down and say what is about to happen."""
    checkpoint = processes.alike(
        launch.accelerator,
        lambda: checkpoint_to_resume(trainer.folder, launch.resume, launch.reporter),
        str,
        f"the checkpoints in {trainer.folder}",
    )
    processes.on_main(launch.accelerator, lambda: _prepare_folder(trainer))
    if checkpoint is None:
        trainer.start()
    else:
        trainer.resume(checkpoint)
    timed = _timed(launch, trainer)
    if timed is not None:
        settings = replace(settings, training=replace(settings.training, steps=timed.steps))
    trainer.set_steps(settings.training)
    launch.reporter.say(_banner(trainer, facts, timed))
    processes.on_main(launch.accelerator, lambda: write_json(trainer.folder / IN_PROGRESS, as_json(settings)))
    return settings


def _prepare_folder(trainer: Trainer[Batch, ReportedT]) -> None:
    """Remove what killed commands left half written. Raises ResourceError where the disk does not hold the training."""
    remove_left_behind(trainer.folder)
    there = sum(path.stat().st_size for path in (trainer.folder / CHECKPOINTS).glob("*/*"))
    needed = disk_needed(trainer.state, min(trainer.config.keep, trainer.config.checkpoints)) - there
    check_disk(trainer.folder, needed, "this training", "choose a smaller --keep, or make room there")


def _report_end(trainer: Trainer[Batch, ReportedT], ended: Ended) -> None:
    """Say how a training ended, if before its last step. Raises InterruptedRunError after a signal."""
    record = trainer.state.record
    steps = f"after step {record.step:,} of {record.total_steps:,}"
    if ended.signal_number:
        message = f"stopped as asked {steps}; go on with `{resume_command(trainer.folder)}`"
        raise InterruptedRunError(message, ended.signal_number)
    if ended.early:
        trainer.reporter.say(
            f"stopped early {steps}: nothing was better than step {record.best_step:,} for "
            f"{trainer.config.patience} evaluations; it goes on with "
            f"`{resume_command(trainer.folder, alone=True)} --patience 0`"
        )


def resume_command(stage: Path, *, alone: bool = False) -> str:
    """The command that goes on with the training in a stage's folder: RUN/vqvae, one in its decoders, or
    RUN/prior/LEVEL.

    Of several levels it goes on with those that have been begun together, or with this one `alone`.
    """
    if stage.parent.name == "decoders":
        return f"gen sharpen {shlex.quote(str(stage.parents[2]))} --resume auto"
    if not stage.name.isdigit():
        return f"gen train-vqvae --out {shlex.quote(str(stage.parent))} --resume auto"
    run = RunFolder(stage.parents[1])
    levels = read_config(run.vqvae, VQVAERun).model.levels
    together = all((run.prior(level) / IN_PROGRESS).exists() for level in range(levels))
    level = "" if levels == 1 or (together and not alone) else f" --level {stage.name}"
    return f"gen train-prior {shlex.quote(str(run.path))} --resume auto{level}"


def _timed(launch: Launch, trainer: Trainer[Batch, ReportedT]) -> Timed | None:
    """Minutes as steps, once: a run that was given steps, or is resumed, has their number already."""
    training = trainer.config
    if training.steps is not None:
        return None
    return steps_within(trainer, 60 * (training.max_minutes or 0) - (time.perf_counter() - launch.started))


def cost(model: Model) -> tuple[str, str]:
    """What an image costs, so that two networks can be compared before hours are spent: a fact of a banner."""
    return ("arithmetic", f"{multiply_adds(model) / 1e9:.3g} GMAC (multiply-adds) per image, forward")


def _banner(trainer: Trainer[Batch, ReportedT], facts: list[tuple[str, str]], timed: Timed | None) -> str:
    training, accelerator, done = trainer.config, trainer.accelerator, trainer.state.record.step
    device = f"{accelerator.device.type} ({torch.get_num_threads()} threads)"
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    parameters = sum(p.numel() for p in trainer.module.parameters())
    memory = f"about {expected_memory(trainer) / 2**20:,.0f} MiB per process, without data and libraries"
    steps = f"{training.steps:,} of {training.batch_size} images" + (f", {done:,} done" if done else "")
    steps += f", estimated to take {training.max_minutes:.3g} minutes in all" if training.max_minutes else ""
    steps += f", at {timed.images_per_second:,.0f} images per second" if timed else ""
    count = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
    return table(
        [
            *facts,
            ("device", f"{device}, {count}, {training.precision}{', deterministic' if training.deterministic else ''}"),
            ("parameters", f"{parameters:,}"),
            ("steps", steps),
            ("learning rate", f"{training.learning_rate:g} at most, gradients clipped at {training.clip:g}"),
            ("memory", memory),
            ("folder", str(trainer.folder)),
        ]
    )
