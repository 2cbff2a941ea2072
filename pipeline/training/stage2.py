"""Train stage 2: what `gen train-prior` calls."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Never, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import processes
from pipeline.config.arguments import PriorArguments
from pipeline.config.data import ARRAY, DataConfig
from pipeline.config.options import build, flatten, given
from pipeline.config.presets import PresetName
from pipeline.config.training import AugmentConfig
from pipeline.data.codes.shards import StoredCodes, read_parts
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import load_split
from pipeline.errors import CheckpointError, UsageError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.card import write_card
from pipeline.runs.layout import (
    CONFIG,
    LOGS,
    METRICS,
    SAMPLES_PICTURE,
    SPLIT,
    VALIDATION,
    WEIGHTS,
    RunFolder,
    is_finished,
)
from pipeline.runs.loading import LoadedVQVAE, load_vqvae
from pipeline.runs.lock import locked
from pipeline.runs.opening import Run, open_run
from pipeline.runs.saved import PriorRun
from pipeline.runs.status import StatusFile
from pipeline.runs.validation import Metrics
from pipeline.storage import atomic_folder, check_paths, sha256, tensors_sha256
from pipeline.training import previews
from pipeline.training.inputs.batches import CodeBatches
from pipeline.training.inputs.extract import Encoder, extract, views_of
from pipeline.training.inputs.images import check_unchanged, load_image_set
from pipeline.training.launch import Launch, Trained, check_fits, cost, seeded_weights, train_and_publish
from pipeline.training.levels import LevelPlan, level_of, plan_levels, save_settings
from pipeline.training.loop.trainer import Trainer
from pipeline.training.resume import NothingLeftError, check_free, check_left_out, folder_of_checkpoint
from pipeline.training.stage1 import check_settled
from pipeline.training.tracking import show_picture
from stage2_prior import CodeBatch, PriorConfig, PriorTask, make_prior


def train_prior(
    run: str | Path | None = None,
    *,
    level: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    log: str | None = None,
    data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    **options: Unpack[PriorArguments],
) -> Trained:
    """Learn the distribution of a run's codes, into RUN/prior/LEVEL; by default of the newest run with a stage 1.

    All levels are learned one after the other, each given the coarser ones, or one `level` alone (0 is the coarsest).
    `out`: another run folder, to which the frozen stage 1 is copied first. `data`, or `images` with `targets`: where
    the images of stage 1 are now, if not where they were; needed only until the codes are extracted. `options` are
    the fields of PriorConfig, TrainingConfig and AugmentConfig; those not given come from `config`, then from `preset`,
    by default one for the number of images; `max_minutes` are divided over the levels. `resume`: "auto", or a
    checkpoint's path. `force`: go on with a collapsed codebook. `reporter`: by default progress is shown in a terminal
    or a notebook; Silent() shows none. Raises GenError.
    """
    check_paths(run=run, out=out, resume=resume, config=config)
    if not isinstance(force, bool | np.bool_):
        raise UsageError(f"force is True or False; got {force!r:.60}")
    asked, checkpoint = given(dict(options)), None if resume is None else str(resume)
    stage = folder_of_checkpoint(checkpoint)
    where = next((name for name in (run, out, level) if name is not None), None) if stage else None
    check_left_out(checkpoint, given({"--preset": preset, "--config": config, "--run, --out and --level": where}))
    named = stage.parent.parent if stage else run
    opened = processes.alike(
        processes.start(), lambda: open_run(named, "vqvae", "plain"), repr, f"the run {named or ''}"
    )
    if not out:
        opened.check_is_own(", or name another run for the prior with --out")
    folder = RunFolder(Path(out)) if out and not stage else opened.folder
    launch = Launch(asked, processes.start(log, folder.path / LOGS), reporter or reporter_for_api(), checkpoint)
    only = level_of(stage) if stage else level
    with StatusFile(folder.path, "prior", launch.accelerator, launch.reporter) as status:
        plan = _planned(folder, launch, lambda: plan_levels(opened, folder, only, launch, preset, config))
        source = _copy_stage1(opened, folder, launch)
        check_settled(folder, ", or learn the codes that it makes now with --out")
        vqvae = load_vqvae(source, launch.accelerator.device)
        plan.check(folder, vqvae, launch, force)

        def read() -> ImageSet:
            now = given({"data": ARRAY if images is not None else data})
            return load_image_set(*build(flatten(vqvae.config.data) | now, DataConfig), images, targets, launch)

        maps = _code_maps(status, folder, vqvae, plan.augmentation(), read, launch)
        return _train_levels(launch, status, folder, plan.runs(vqvae, maps["train"], launch), vqvae, maps)


def _train_levels(
    launch: Launch,
    status: StatusFile,
    folder: RunFolder,
    runs: list[PriorRun],
    vqvae: LoadedVQVAE,
    maps: dict[str, StoredCodes],
) -> Trained:
    """One level after another."""
    save_settings(folder, runs, launch)
    done: dict[int, Trained] = {}
    for settings in runs:
        timed = replace(launch, started=time.perf_counter()) if len(runs) > 1 else launch
        done[settings.level] = _train(timed, status, folder, settings, vqvae, maps)
    if len(done) == 1:
        return next(iter(done.values()))
    levels = [done[level].validation.values if level in done else {} for level in range(max(done) + 1)]
    return Trained(folder.path, sum(one.steps for one in done.values()), Metrics({}, tuple(levels)))


def _planned(folder: RunFolder, launch: Launch, plan: Callable[[], LevelPlan]) -> LevelPlan:
    """What is to be trained, the same on every process."""
    try:
        return processes.alike(launch.accelerator, plan, repr, f"the priors in {folder.priors}")
    except NothingLeftError:
        processes.on_main(launch.accelerator, lambda: write_card(folder))  # a command killed at its end has left it out
        raise


def _copy_stage1(source: Run, folder: RunFolder, launch: Launch) -> Run:
    """The run itself, or one in another folder to which the frozen stage 1 is copied with what it logged, so that it is
    whole by itself."""
    if folder.path.resolve() == source.folder.path.resolve():
        return source

    def copy() -> None:
        ours, theirs = folder.vqvae, source.folder.vqvae
        if not ours.exists():
            with atomic_folder(ours) as unfinished:
                for name in (CONFIG, WEIGHTS, VALIDATION, SPLIT):
                    shutil.copyfile(theirs / name, unfinished / name)
                if (theirs / METRICS).exists():
                    shutil.copyfile(theirs / METRICS, unfinished / METRICS)
        elif not is_finished(ours) or sha256(ours / WEIGHTS) != sha256(theirs / WEIGHTS):
            raise UsageError(f"{ours} exists already, and is not that of {source.folder.path}; choose another --out")

    processes.on_main(launch.accelerator, copy)
    return open_run(folder.path, "vqvae", "plain")


def _code_maps(
    status: StatusFile,
    folder: RunFolder,
    vqvae: LoadedVQVAE,
    augment: AugmentConfig,
    read: Callable[[], ImageSet],
    launch: Launch,
) -> dict[str, StoredCodes]:
    """The codes of the training and the validation part: those on disk if still right, else of the images read now."""
    identity = codes_identity(folder, vqvae, augment)
    accelerator = launch.accelerator
    expected = (identity, vqvae.config.model, len(vqvae.config.class_names))
    of_processes = (accelerator.process_index, accelerator.num_processes)
    current = read_parts(folder.codes, *expected, *of_processes)
    if not processes.true_on_all(accelerator, current is not None):
        with locked(folder.path, accelerator):
            # Another command may have written them meanwhile.
            current = read_parts(folder.codes, *expected, *of_processes)
            if not processes.true_on_all(accelerator, current is not None):
                status.begin("codes")
                return _extract(folder, vqvae, augment, read(), launch)
    assert current is not None
    launch.reporter.say(f"using the codes in {folder.codes}")
    return current


def _extract(
    folder: RunFolder, vqvae: LoadedVQVAE, augment: AugmentConfig, image_set: ImageSet, launch: Launch
) -> dict[str, StoredCodes]:
    check_unchanged(folder, vqvae.config, image_set)
    parts, views = load_split(folder.vqvae / SPLIT), views_of(augment, vqvae.config.data.flip)
    times = f", each {len(views)} times" if len(views) > 1 else ""
    if sum(map(len, parts)) != len(image_set.images):
        raise CheckpointError(
            f"{folder.vqvae / SPLIT} divides {sum(map(len, parts)):,} images, and there are {len(image_set.images):,}; "
            "copy it again from where it came"
        )
    images = len(parts.train) + len(parts.validation)
    launch.reporter.say(f"encoding {images:,} images{times} into {folder.codes}")
    encoder = Encoder(vqvae.network, image_set, launch.accelerator, launch.reporter)
    return extract(folder.codes, encoder, codes_identity(folder, vqvae, augment), parts, views)


def codes_identity(folder: RunFolder, vqvae: LoadedVQVAE, augment: AugmentConfig) -> dict[str, str]:
    """What extracted codes depend on."""
    parts = {name: torch.from_numpy(part) for name, part in load_split(folder.vqvae / SPLIT)._asdict().items()}
    return {
        "codes_sha256": vqvae.codes_sha256,
        "fingerprint": vqvae.config.fingerprint,
        "split_sha256": tensors_sha256(parts),
        "flip": "yes" if vqvae.config.data.flip else "no",
        **{name: str(value) for name, value in flatten(augment).items()},
    }


def _train(
    launch: Launch,
    status: StatusFile,
    folder: RunFolder,
    settings: PriorRun,
    vqvae: LoadedVQVAE,
    maps: dict[str, StoredCodes],
) -> Trained:
    level, stage, train, validation = settings.level, folder.prior(settings.level), maps["train"], maps["validation"]
    check_fits(launch, settings)
    with seeded_weights(settings.training.seed):
        task = PriorTask(make_prior(settings.model), validation.unigram_nats[level])

    def preview(evaluated: nn.Module) -> None:
        assert isinstance(evaluated, PriorTask)
        picture = previews.samples(evaluated.network, vqvae.network, validation)
        show_picture(launch.accelerator, stage / SAMPLES_PICTURE, picture, trainer.state.record.step)

    trainer: Trainer[CodeBatch, Never] = Trainer(  # a prior has no statistics to report
        task=task,
        data=CodeBatches(train, validation, level, settings.model.num_codes, settings.training.seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=stage,
        reporter=launch.reporter,
        preview=preview,
    )
    with locked(stage, launch.accelerator):
        check_free(stage, launch.resume)
        return train_and_publish(launch, status, trainer, folder, settings, _facts(folder, settings, maps), [])


def _facts(folder: RunFolder, settings: PriorRun, maps: dict[str, StoredCodes]) -> list[tuple[str, str]]:
    model, train = settings.model, maps["train"]
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    encodings = f", in {train.encodings} encodings" if train.encodings > 1 else ""
    which = f" of level {settings.level}" if len(train.grids) > 1 else ""
    given_levels = f", given {len(model.coarser)} coarser levels" if model.coarser else ""
    validation = f"{len(maps['validation']):,} more for validation"
    return [
        ("task", f"learn the distribution of codes{which} (stage 2)"),
        ("data", f"{folder.codes}: {len(train):,} maps{encodings}, {validation}{classes}"),
        ("codes", f"{model.height} x {model.width}, each one of {model.num_codes}{given_levels}"),
        ("network", f"{model.prior}, {model.layers} layers of {model.hidden} channels"),
        ("reach", _reach(model)),
        (
            "scale",
            f"nats per code: uniform {math.log(model.num_codes):.3f}, unigram {train.unigram_nats[settings.level]:.3f}",
        ),
        cost(model),
    ]


def _reach(model: PriorConfig) -> str:
    if model.reach is None:
        return "all earlier codes"
    largest = max(model.height, model.width) - 1
    enough = model.reach >= largest
    advice = "" if enough else f"; the map has {largest}: more --layers or a larger --kernel would see all"
    return f"{model.reach} rows and columns back{advice}"
