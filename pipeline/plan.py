"""Which levels of a run's codes are to be learned, and with what options."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.checkpoint import EVALUATION, IN_PROGRESS
from pipeline.claim import alone_in
from pipeline.codes import AugmentConfig, CodeMaps
from pipeline.continuing import NothingLeftError, saved_run
from pipeline.data import EMBEDDED, class_weights
from pipeline.errors import CheckpointError, UsageError
from pipeline.health import check_codebook
from pipeline.launch import Launch, check_processes, fit_to_processes, merge
from pipeline.options import build, option_fields
from pipeline.run import (
    DRAWN_FROM_NORMAL,
    SPLIT,
    LoadedVQVAE,
    PriorRun,
    RunFolder,
    VQVAERun,
    as_json,
    check_belongs,
    read_config,
)
from pipeline.settings import TrainingConfig, preset_for
from pipeline.storage import load_tensors, read_json, write_json
from stage1_vqvae import VQVAEConfig
from stage2_prior import PriorConfig

CONFIGS = (PriorConfig, TrainingConfig, AugmentConfig)


class Plan(NamedTuple):
    """The levels to train, with what was saved of those to resume; and the options of new ones."""

    saved: dict[int, PriorRun | None]
    options: dict[str, Any]

    def check(self, folder: RunFolder, vqvae: LoadedVQVAE, launch: Launch, force: bool) -> None:
        """Raise UsageError or CheckpointError for what cannot go well with this stage 1 and these processes."""
        if None in self.saved.values() and not force:
            check_codebook(folder, vqvae.config.model, read_json(folder.vqvae / EVALUATION))
        for settings in filter(None, self.saved.values()):
            check_processes(settings.training, launch.accelerator)
            check_belongs(folder, settings, vqvae.sha256)

    def augmentation(self) -> AugmentConfig:
        """How the images are encoded, for all levels alike."""
        known = {settings.augmentation for settings in self.saved.values() if settings}
        if len(known) > 1:
            raise UsageError("these levels were begun with different --encodings and --shift; resume one with --level")
        asked = {name: value for name, value in self.options.items() if name in option_fields(AugmentConfig)}
        return known.pop() if known else AugmentConfig(**asked)

    def runs(self, vqvae: LoadedVQVAE, train: CodeMaps, launch: Launch) -> list[PriorRun]:
        """The runs of all levels: as saved, or new ones; those without a number of steps yet share the minutes left."""
        minutes = (self.options or launch.options).get("max_minutes")
        shares = self._shares(vqvae.config.model)
        left = minutes or 0
        if len(self.saved) > 1:  # each starts a clock of its own
            left = max(1e-3, left - (time.perf_counter() - launch.started) / 60)
        timed = {level: left * share for level, share in shares.items()} if minutes else {}
        runs = []
        for level, saved in self.saved.items():
            if saved is None:
                given = self.options | ({"max_minutes": timed[level]} if level in timed else {})
                saved = _new_run(given, vqvae, train, level, self.augmentation(), launch)
            elif level in timed:
                saved = replace(saved, training=replace(saved.training, max_minutes=timed[level]))
            runs.append(saved)
        return runs

    def _shares(self, model: VQVAEConfig) -> dict[int, float]:
        """How levels share the time, by their positions, each a tenth at least; but those whose steps are settled."""
        unsettled = [level for level, saved in self.saved.items() if saved is None or saved.training.steps is None]
        positions = {level: math.prod(model.grids[level]) for level in unsettled}
        shares = {level: max(0.1, count / sum(positions.values())) for level, count in positions.items()}
        return {level: share / sum(shares.values()) for level, share in shares.items()}


def make_plan(
    source: RunFolder,
    folder: RunFolder,
    level: int | None,
    launch: Launch,
    preset: str | None,
    config: str | Path | None,
) -> Plan:
    """The plan for all levels, or the one asked for. Raises UsageError, CheckpointError before any work."""
    vqvae = read_config(source.vqvae, VQVAERun)
    levels = _levels(folder, vqvae, level)
    saved: dict[int, PriorRun | None] = {}
    complaints = []
    for number in levels:
        try:
            saved[number] = saved_run(folder.prior(number), PriorRun, launch.resume, launch.options)
        except NothingLeftError as error:  # of several levels the others go on
            complaints.append(error)
    if not saved:
        raise complaints[0]
    for complaint in complaints:
        launch.reporter.say(f"left alone: {complaint}")
    new = [number for number, found in saved.items() if found is None]
    return Plan(saved, _new_options(source, vqvae, launch, preset, config, new) if new else {})


def promise(folder: RunFolder, runs: list[PriorRun], launch: Launch) -> None:
    """Of several levels write down how each will be trained: whatever interrupts one, all resume as asked for."""
    for run in runs if len(runs) > 1 else []:
        with alone_in(folder.prior(run.level), launch.accelerator):
            if launch.accelerator.is_main_process:
                write_json(folder.prior(run.level) / IN_PROGRESS, as_json(run))
    launch.accelerator.wait_for_everyone()


def _levels(folder: RunFolder, vqvae: VQVAERun, level: int | None) -> list[int]:
    """The levels to train: all, or the one asked for.

    Raises UsageError for codes that no prior can be trained on.
    """
    model = vqvae.model
    if not model.is_discrete:
        draw = f"; `gen sample {folder.path}` draws from N(0, I)" if model.bottleneck in DRAWN_FROM_NORMAL else ""
        raise UsageError(
            f"the codes of {folder.vqvae} are numbers (--bottleneck {model.bottleneck}), and a prior needs integers: "
            f"train stage 1 with vq, gumbel or fsq{draw}"
        )
    if level is not None and level not in range(model.levels):
        raise UsageError(
            f"--level {level} does not exist: the codes of {folder.vqvae} have levels 0 to {model.levels - 1}"
        )
    return list(range(model.levels)) if level is None else [level]


def _new_options(
    source: RunFolder,
    vqvae: VQVAERun,
    launch: Launch,
    preset: str | None,
    config: str | Path | None,
    levels: list[int],
) -> dict[str, Any]:
    """Checked options of new runs. Raises UsageError for all that is wrong, before any work."""
    images = len(load_tensors(source.vqvae / SPLIT)["train"])
    chosen = preset or ("digits" if vqvae.data.data == EMBEDDED else preset_for(images))
    if preset is None:
        launch.reporter.say(f"preset {chosen}, for {images:,} images")
    options = merge("prior", launch.options, chosen, config, CONFIGS)
    shape = {"coarser": (vqvae.model.num_codes,) * levels[-1], "num_classes": len(vqvae.class_names)}
    model = build(CONFIGS, options, shape)[0]
    idle = model.without_effect(launch.options)
    if idle:
        raise UsageError("\n".join(idle))
    return options


def _new_run(
    options: dict[str, Any],
    vqvae: LoadedVQVAE,
    train: CodeMaps,
    level: int,
    augmentation: AugmentConfig,
    launch: Launch,
) -> PriorRun:
    _, height, width = train.levels[level].shape
    names, num_codes = vqvae.config.class_names, vqvae.config.model.num_codes
    shape = {
        "height": height,
        "width": width,
        "num_codes": num_codes,
        "num_classes": len(names),
        "coarser": (num_codes,) * level,
    }
    model, training, _ = build(CONFIGS, options, shape)
    weights = () if train.labels is None else tuple(class_weights(train.labels.numpy(), len(names)).tolist())
    return PriorRun(
        model=model,
        training=fit_to_processes(training, launch.accelerator),
        augmentation=augmentation,
        level=level,
        vqvae_sha256=vqvae.sha256,
        class_names=names,
        class_weights=weights,
    )


def level_of(stage: Path) -> int:
    """The level of a prior's folder. Raises CheckpointError for any other."""
    if stage.parent.name != "prior" or not stage.name.isdigit():
        raise CheckpointError(f"{stage} holds no prior; resume it with `gen train-vqvae`")
    return int(stage.name)
