"""Which levels of a run's codes are to be learned, and with what options."""

import functools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config.data import EMBEDDED
from pipeline.config.options import OptionDict, Options, build, option_fields
from pipeline.config.presets import preset_for
from pipeline.config.training import AugmentConfig, TrainingConfig
from pipeline.data.codes.shards import StoredCodes
from pipeline.data.splits import load_split
from pipeline.errors import CheckpointError, UsageError
from pipeline.runs.layout import IN_PROGRESS, SPLIT, RunFolder
from pipeline.runs.loading import LoadedVQVAE, check_codes
from pipeline.runs.lock import locked
from pipeline.runs.opening import Run
from pipeline.runs.saved import SAMPLED_FROM_NORMAL, PriorRun, VQVAERun, as_json
from pipeline.runs.validation import Metrics, read_validation
from pipeline.storage import write_json
from pipeline.training.launch import Launch, check_processes, fit_to_processes, resolve_options
from pipeline.training.resume import NothingLeftError, saved_run
from stage1_vqvae import VQVAEConfig
from stage2_prior import PriorConfig

CONFIGS = (PriorConfig, TrainingConfig, AugmentConfig)
COLLAPSED = 0.01  # perplexity over the number of codes below which stage 2 has nothing to learn
# What new priors that know their classes, and can do without, are sampled with where no guidance is given; it is saved
# in their config.json. By the tables of docs/measurements.md.
DEFAULT_GUIDANCE = 1.5
_LEAST_FRACTION = 0.1  # of the minutes, for each of several levels


class LevelPlan(NamedTuple):
    """The levels to train, with what was saved of those to resume; and the options of new ones."""

    saved: dict[int, PriorRun | None]
    options: Options

    def check(self, folder: RunFolder, vqvae: LoadedVQVAE, launch: Launch, force: bool) -> None:
        """Raise UsageError or CheckpointError for what cannot go well with this stage 1 and these processes."""
        measured = read_validation(folder.vqvae).metrics  # without it the run's card could not be written in the end
        if None in self.saved.values() and not force:
            check_codebook(folder, vqvae.config.model, measured)
        for settings in filter(None, self.saved.values()):
            check_processes(settings.training, launch.accelerator)
            check_codes(folder, settings, vqvae.codes_sha256)

    def augmentation(self) -> AugmentConfig:
        """How the images are encoded, for all levels alike."""
        begun = {settings.augmentation for settings in self.saved.values() if settings}
        if len(begun) > 1:
            raise UsageError("these levels were begun with different --encodings and --shift; resume one with --level")
        own = {name: value for name, value in self.options.items() if name in option_fields(AugmentConfig)}
        return begun.pop() if begun else build(own, AugmentConfig)[0]

    def runs(self, vqvae: LoadedVQVAE, train: StoredCodes, launch: Launch) -> list[PriorRun]:
        """The runs of all levels: as saved, or new ones; those without a number of steps yet divide the minutes left
        in proportion to their positions, each a tenth at least."""
        minutes = self._minutes_left(launch)
        unsettled = [level for level, saved in self.saved.items() if saved is None or saved.training.steps is None]
        positions = {level: math.prod(vqvae.config.model.grids[level]) for level in unsettled}
        parts = {level: max(_LEAST_FRACTION, own / sum(positions.values())) for level, own in positions.items()}
        timed = {level: minutes * part / sum(parts.values()) for level, part in parts.items()} if minutes else {}
        runs = []
        for level, saved in self.saved.items():
            if saved is None:
                own = {**self.options, "max_minutes": timed[level]} if level in timed else self.options
                saved = _new_run(own, vqvae, train, level, self.augmentation(), launch)
            elif level in timed:
                saved = replace(saved, training=replace(saved.training, max_minutes=timed[level]))
            runs.append(saved)
        return runs

    def _minutes_left(self, launch: Launch) -> float:
        """The minutes for all levels together; 0 where steps were asked for."""
        minutes = (self.options or launch.options).get("max_minutes")
        if not isinstance(minutes, int | float):
            return 0.0
        if len(self.saved) == 1:  # the loop counts from the start
            return minutes
        return max(1e-3, minutes - (time.perf_counter() - launch.started) / 60)


def plan_levels(
    run: Run, folder: RunFolder, level: int | None, launch: Launch, preset: str | None, config: str | Path | None
) -> LevelPlan:
    """The plan for all levels of a run's codes, or for one; the priors lie, or will lie, in `folder`.

    Raises UsageError, CheckpointError before any work.
    """
    saved: dict[int, PriorRun | None] = {}
    complaints = []
    for number in _levels(run, level):
        try:
            saved[number] = saved_run(folder.prior(number), PriorRun, launch.resume, launch.options)
        except NothingLeftError as error:  # of several levels the others go on
            complaints.append(error)
    if not saved:
        raise complaints[0]
    for complaint in complaints:
        launch.reporter.say(f"left alone: {complaint}")
    new = [number for number, found in saved.items() if found is None]
    return LevelPlan(saved, _new_options(run, launch, preset, config, new) if new else {})


def save_settings(folder: RunFolder, runs: list[PriorRun], launch: Launch) -> None:
    """Of several levels write down how each will be trained: whatever interrupts one, all resume as asked for."""
    for run in runs if len(runs) > 1 else []:
        path = folder.prior(run.level) / IN_PROGRESS
        with locked(path.parent, launch.accelerator, functools.partial(write_json, path, as_json(run))):
            pass


def check_codebook(folder: RunFolder, config: VQVAEConfig, measured: Metrics) -> None:
    """Raise UsageError when the codes say next to nothing: a prior would reach few nats, and draw one picture."""
    least = max(1.5, COLLAPSED * config.num_codes)
    for level, codes in enumerate(measured.levels):
        if codes["perplexity"] < least:
            used, total = codes["codebook_usage"] * config.num_codes, config.num_codes
            which = f" of level {level}" if len(measured.levels) > 1 else ""
            raise UsageError(
                f"the codebook{which} in {folder.vqvae} has collapsed: {used:.0f} of {total} codes are used, "
                f"with a perplexity of {codes['perplexity']:.1f} on the validation part, where {least:.3g} is wanted. "
                "Train stage 1 anew and longer, with fewer --num-codes or a smaller --code-dim; or go on with --force"
            )


def _levels(run: Run, level: int | None) -> list[int]:
    """The levels to train: all, or the one asked for. Raises UsageError for codes that no prior can be trained on."""
    model, folder = run.vqvae.model, run.folder
    if not model.is_discrete:
        draw = f"; `gen sample {folder.path}` draws from N(0, I)" if model.bottleneck in SAMPLED_FROM_NORMAL else ""
        raise UsageError(
            f"the codes of {folder.vqvae} are numbers (--bottleneck {model.bottleneck}), and a prior needs integers: "
            f"train stage 1 with vq, gumbel or fsq{draw}"
        )
    if level is not None and not (isinstance(level, int | np.integer) and level in range(model.levels)):
        raise UsageError(
            f"--level {level!r:.30} does not exist: the codes of {folder.vqvae} have levels 0 to {model.levels - 1}"
        )
    return list(range(model.levels)) if level is None else [level]


def _new_options(
    run: Run, launch: Launch, preset: str | None, config: str | Path | None, levels: list[int]
) -> OptionDict:
    """Checked options of new runs. Raises UsageError for all that is wrong, before any work."""
    images = len(load_split(run.folder.vqvae / SPLIT).train)
    default = "digits" if run.vqvae.data.data == EMBEDDED else preset_for(images)
    chosen = default if preset is None else preset
    if preset is None:
        launch.reporter.say(f"preset {chosen}, for {images:,} images")
    options = resolve_options("prior", launch.options, chosen, config, CONFIGS)
    shape = _shape(run.vqvae, levels[-1])
    model, _, _ = build(options, PriorConfig, TrainingConfig, AugmentConfig, derived=shape)
    idle = model.without_effect(launch.options)
    if idle:
        raise UsageError("\n".join(idle))
    return options


def _shape(vqvae: VQVAERun, level: int) -> OptionDict:
    """What of a prior's configuration follows from stage 1."""
    height, width = vqvae.model.grids[level]
    num_codes = vqvae.model.num_codes
    return {
        "height": height,
        "width": width,
        "num_codes": num_codes,
        "num_classes": len(vqvae.class_names),
        "coarser": (num_codes,) * level,
    }


def _new_run(
    options: Options,
    vqvae: LoadedVQVAE,
    train: StoredCodes,
    level: int,
    augmentation: AugmentConfig,
    launch: Launch,
) -> PriorRun:
    names, shape = vqvae.config.class_names, _shape(vqvae.config, level)
    model, training, _ = build(options, PriorConfig, TrainingConfig, AugmentConfig, derived=shape)
    weights = tuple((train.class_counts(len(names)) / len(train)).tolist())
    return PriorRun(
        model=model,
        training=fit_to_processes(training, launch.accelerator),
        augmentation=augmentation,
        level=level,
        codes_sha256=vqvae.codes_sha256,
        class_names=names,
        class_weights=weights,
        guidance=DEFAULT_GUIDANCE if model.can_be_guided else 1.0,
    )


def level_of(stage: Path) -> int:
    """The level of a prior's folder. Raises CheckpointError for any other."""
    if stage.parent.name != "prior" or not stage.name.isdigit():
        raise CheckpointError(f"{stage} holds no prior; resume it with `gen train-vqvae`")
    return int(stage.name)
