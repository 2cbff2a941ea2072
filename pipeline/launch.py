"""What both trainings have in common around the loop: their options, their folder, their beginning and end."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipeline import processes
from pipeline.budget import steps_within
from pipeline.card import write_card
from pipeline.checkpoint import IN_PROGRESS, publish
from pipeline.continuing import BOTH_LENGTHS, checkpoint_to_resume
from pipeline.errors import UsageError
from pipeline.memory import expected_memory
from pipeline.options import flatten, read_config_file
from pipeline.randomness import Purpose, number
from pipeline.reporting import Reporter, table
from pipeline.run import PriorRun, RunFolder, VQVAERun, as_json
from pipeline.settings import PRESETS, TrainingConfig
from pipeline.storage import write_json
from pipeline.training import Trainer


@dataclass(frozen=True)
class Trained:
    """A finished training: the run folder, the steps done in all, and the best evaluation on the held-out split."""

    run: Path
    steps: int
    held_out: dict[str, float]


@dataclass(frozen=True)
class Launch:
    """A training as it was asked for: by whom it is carried out, what was given, and what it goes on from."""

    options: Mapping[str, Any]
    accelerator: Accelerator
    reporter: Reporter
    resume: str | None
    started: float = field(default_factory=time.perf_counter)


def merge(
    stage: str, options: Mapping[str, Any], preset: str, config: str | Path | None, configs: Iterable[type]
) -> dict[str, Any]:
    """Options in order of precedence: given, from a saved config.json, from the preset. Raises UsageError."""
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if options.get("steps") and options.get("max_minutes"):
        raise UsageError(BOTH_LENGTHS)
    merged = dict(getattr(PRESETS[preset], stage))
    merged |= read_config_file(Path(config), stage, configs) if config else {}
    if options.get("max_minutes"):
        merged.pop("steps", None)
    return merged | dict(options)


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
    """Raise UsageError unless the processes share the micro-batches evenly."""
    parts = training.micro_batches or 1
    if parts % accelerator.num_processes:
        raise UsageError(
            f"this training has {parts} micro-batches a step, which {accelerator.num_processes} processes cannot "
            f"share evenly; launch a number that divides {parts}, or start with other --micro-batches"
        )


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Initial weights as a function of the seed; the caller's random numbers are left as they were."""
    with torch.random.fork_rng([]):  # weights are made on the CPU
        torch.manual_seed(number(seed, Purpose.WEIGHTS))
        yield


def carry_out(
    launch: Launch,
    trainer: Trainer,
    run: RunFolder,
    settings: VQVAERun | PriorRun,
    facts: list[tuple[str, str]],
    published: list[str],
) -> Trained:
    """Initialise or resume, say what is about to happen, train, and make the best weights the stage's model.

    `facts` are shown at the start; `published` are files in the stage's folder that belong to its model.
    """
    checkpoint = checkpoint_to_resume(trainer.folder, launch.resume, launch.reporter)
    if checkpoint is None:
        trainer.start()
    else:
        trainer.resume(checkpoint)
    settings = replace(settings, training=_with_steps(launch, trainer, settings.training))
    trainer.set_steps(settings.training)
    launch.reporter.say(_banner(trainer, facts))
    if launch.accelerator.is_main_process:
        write_json(trainer.folder / IN_PROGRESS, as_json(settings))
    launch.accelerator.init_trackers(trainer.folder.name, config=_plain(flatten(settings.model, settings.training)))
    trainer.run()
    if launch.accelerator.is_main_process:
        publish(trainer.folder, as_json(settings), trainer.state.progress, published)
        write_card(run)
    launch.accelerator.wait_for_everyone()
    for tracker in launch.accelerator.trackers:
        tracker.finish()
    launch.accelerator.trackers.clear()  # else the next level's curves would be written here as well
    return Trained(run.path, trainer.state.progress.step, trainer.state.progress.best)


def _with_steps(launch: Launch, trainer: Trainer, training: TrainingConfig) -> TrainingConfig:
    """Turn minutes into steps, once: a resumed run has its number already."""
    if training.steps is not None:
        return training
    seconds = 60 * (training.max_minutes or 0) - (time.perf_counter() - launch.started)
    return replace(training, steps=steps_within(trainer, seconds))


def _banner(trainer: Trainer, facts: list[tuple[str, str]]) -> str:
    training, accelerator = trainer.config, trainer.accelerator
    parameters = sum(p.numel() for p in trainer.task.parameters())
    done = trainer.state.progress.step
    return table(
        [
            *facts,
            (
                "device",
                f"{_device(accelerator)}, {accelerator.num_processes} process(es), {training.precision}",
            ),
            ("parameters", f"{parameters:,}"),
            (
                "steps",
                f"{training.steps:,} of {training.batch_size} images" + (f", {done:,} done" if done else ""),
            ),
            (
                "memory",
                f"about {expected_memory(trainer) / 2**20:,.0f} MiB a process, without data and libraries",
            ),
            ("folder", str(trainer.folder)),
        ]
    )


def _device(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"{accelerator.device.type} ({torch.get_num_threads()} threads)"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker takes: numbers and strings."""
    return {name: value for name, value in options.items() if value is not None}
