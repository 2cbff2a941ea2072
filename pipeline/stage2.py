"""Train stage 2: what `gen train-prior` calls."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline import previews, processes
from pipeline.batches import CodeBatches
from pipeline.checkpoint import CONFIG, EVALUATION, IN_PROGRESS, WEIGHTS, is_finished
from pipeline.claim import alone_in
from pipeline.codes import AugmentConfig, CodeMaps, Encoder, extract, read_current, unigram_entropy, views_of
from pipeline.continuing import check_alone, check_free, folder_of_checkpoint
from pipeline.data import ARRAY, ImageSet, Split
from pipeline.errors import UsageError
from pipeline.launch import Launch, Trained, carry_out, seeded_weights
from pipeline.plan import level_of, make_plan, promise
from pipeline.reporting import Reporter, Silent
from pipeline.run import (
    SPLIT,
    LoadedVQVAE,
    PriorRun,
    RunFolder,
    VQVAERun,
    find_run,
    load_vqvae,
    read_config,
    resuming,
)
from pipeline.stage1 import check_unchanged, load
from pipeline.storage import atomic_folder, load_tensors, sha256, verify
from pipeline.training import Trainer
from stage2_prior import PriorConfig, PriorTask, make_prior


def train_prior(
    run: str | Path | None = None,
    *,
    level: int | None = None,
    out: str | Path | None = None,
    resume: str | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    log: str | None = None,
    data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> Trained:
    """Learn the distribution of a run's codes, into RUN/prior/LEVEL; by default of the newest run with a stage 1.

    All levels are learned one after the other, each beneath the coarser ones, or one `level` alone (0 is the coarsest).
    `out`: another run folder, to which the frozen stage 1 is copied first. `data`, or `images` with `targets`: where
    the images of stage 1 are now, if not where they were; needed only until the codes are extracted. `options` are
    the fields of PriorConfig, TrainingConfig and AugmentConfig; those not given come from `config`, then from `preset`,
    by default one for the number of images; `max_minutes` are shared by the levels. `resume`: "auto", or a checkpoint's
    path. `force`: go on with a collapsed codebook. Raises GenError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    stage = folder_of_checkpoint(resume)
    where = next((name for name in (run, out, level) if name is not None), None) if stage else None
    check_alone(resume, **{"--preset": preset, "--config": config, "RUN, --out and --level": where})
    source = RunFolder(stage.parent.parent) if stage else find_run(run, "vqvae")
    folder = RunFolder(Path(out)) if out and not stage else source
    launch = Launch(given, processes.start(log, folder.priors), reporter or Silent(), resume)
    plan = make_plan(source, folder, level_of(stage) if stage else level, launch, preset, config)
    _copy_stage1(source, folder, launch)
    _check_settled(folder)
    vqvae = load_vqvae(folder, launch.accelerator.device)
    plan.check(folder, vqvae, launch, force)

    def read() -> ImageSet:
        where = ARRAY if images is not None else data or vqvae.config.data.data
        return load(replace(vqvae.config.data, data=where), images, targets, launch)

    maps = _code_maps(folder, vqvae, plan.augmentation(), read, launch)
    runs = plan.runs(vqvae, maps["train"], launch)
    promise(folder, runs, launch)
    done: dict[int, Trained] = {}
    for settings in runs:
        timed = replace(launch, started=time.perf_counter()) if len(runs) > 1 else launch
        done[settings.level] = _train(timed, folder, settings, vqvae, maps)
    return _together(done)


def _together(done: dict[int, Trained]) -> Trained:
    """The trainings of several levels as one: steps added up, evaluations with the level's number in their names."""
    first, *others = done.values()
    if not others:
        return first
    held_out = {f"{name}_{level}": value for level, one in done.items() for name, value in one.held_out.items()}
    return Trained(first.run, sum(one.steps for one in done.values()), held_out)


def _check_settled(folder: RunFolder) -> None:
    """Raise UsageError when stage 1 is being trained further: its codes would not be those that are learned."""
    if (folder.vqvae / IN_PROGRESS).exists() and is_finished(folder.vqvae):
        done, wanted = (read_config(folder.vqvae, VQVAERun, name).training.steps or 0 for name in (CONFIG, IN_PROGRESS))
        if wanted > done:
            raise UsageError(
                f"{folder.vqvae} has done {done} steps and is to do {wanted}: finish it with "
                f"`{resuming(folder.vqvae)}`, or learn the codes that it makes now with --out"
            )


def _copy_stage1(source: RunFolder, folder: RunFolder, launch: Launch) -> None:
    """Put the frozen stage 1 of another run where this run's is, so that the folder is whole by itself."""
    if folder.path.resolve() != source.path.resolve() and launch.accelerator.is_main_process:
        verify(source.vqvae)
        if not folder.vqvae.exists():
            with atomic_folder(folder.vqvae) as unfinished:
                for name in (CONFIG, WEIGHTS, EVALUATION, SPLIT):
                    shutil.copyfile(source.vqvae / name, unfinished / name)
        elif not is_finished(folder.vqvae) or sha256(folder.vqvae / WEIGHTS) != sha256(source.vqvae / WEIGHTS):
            raise UsageError(f"{folder.vqvae} exists already, and is not that of {source.path}; choose another --out")
    launch.accelerator.wait_for_everyone()


def _code_maps(
    folder: RunFolder,
    vqvae: LoadedVQVAE,
    augment: AugmentConfig,
    read: Callable[[], ImageSet],
    launch: Launch,
) -> dict[str, CodeMaps]:
    """The codes of both parts of stage 1's split: those on disk if still right, else of the images read now."""
    identity = codes_identity(vqvae, augment)
    current = read_current(folder.codes, identity)
    if not processes.all_agree(launch.accelerator, current is not None):
        with alone_in(folder.path, launch.accelerator):
            current = read_current(folder.codes, identity)  # another command may have written them meanwhile
            if current is None:
                return _extracted(folder, vqvae, augment, read(), launch)
    assert current is not None
    launch.reporter.say(f"using the codes in {folder.codes}")
    return current


def _extracted(
    folder: RunFolder,
    vqvae: LoadedVQVAE,
    augment: AugmentConfig,
    image_set: ImageSet,
    launch: Launch,
) -> dict[str, CodeMaps]:
    check_unchanged(folder, vqvae.config, image_set)
    parts = {name: tensor.numpy() for name, tensor in load_tensors(folder.vqvae / SPLIT).items()}
    views = views_of(augment, vqvae.config.data.flip)
    times = f", each {len(views)} times" if len(views) > 1 else ""
    launch.reporter.say(f"encoding {len(image_set.images):,} images{times} into {folder.codes}")
    encoder = Encoder(vqvae.model, image_set, launch.accelerator, launch.reporter)
    return extract(folder.codes, encoder, codes_identity(vqvae, augment), Split(**parts), views)


def codes_identity(vqvae: LoadedVQVAE, augment: AugmentConfig) -> dict[str, str]:
    """What extracted codes depend on."""
    data = vqvae.config.data
    moved = {name: str(value) for name, value in asdict(augment).items()} if augment.encodings > 1 else {}
    return {
        "vqvae_sha256": vqvae.sha256,
        "fingerprint": vqvae.config.fingerprint,
        "flip": "yes" if data.flip else "no",
        **moved,
        **({"views": "2"} if data.flip else {}),
    }


def _train(
    launch: Launch, folder: RunFolder, settings: PriorRun, vqvae: LoadedVQVAE, maps: dict[str, CodeMaps]
) -> Trained:
    level, place = settings.level, folder.prior(settings.level)
    unigram = unigram_entropy(maps["held_out"].levels[level], settings.model.num_codes)
    with seeded_weights(settings.training.seed):
        task = PriorTask(make_prior(settings.model), unigram)

    def preview(trained: nn.Module) -> None:
        assert isinstance(trained, PriorTask)
        picture = previews.samples(trained.prior, vqvae.model, maps["held_out"])
        if launch.accelerator.is_main_process:
            previews.write(place / "samples.png", picture)

    trainer = Trainer(
        task=task,
        data=CodeBatches(maps["train"], maps["held_out"], level, settings.model.num_codes, settings.training.seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=place,
        reporter=launch.reporter,
        metric="nats",
        preview=preview,
    )
    with alone_in(place, launch.accelerator):
        check_free(place, launch.resume)
        return carry_out(launch, trainer, folder, settings, _facts(folder, settings, maps), [])


def _facts(folder: RunFolder, settings: PriorRun, maps: dict[str, CodeMaps]) -> list[tuple[str, str]]:
    model, train = settings.model, maps["train"]
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    encodings = f", in {1 + len(train.views)} encodings" if train.views else ""
    which = f" of level {settings.level}" if len(train.levels) > 1 else ""
    beneath = f", beneath {len(model.coarser)} coarser levels" if model.coarser else ""
    unigram = unigram_entropy(train.levels[settings.level], model.num_codes)
    return [
        ("task", f"learn the distribution of codes{which} (stage 2)"),
        ("data", f"{folder.codes}: {len(train):,} maps{encodings}, {len(maps['held_out']):,} more held out{classes}"),
        ("codes", f"{model.height} x {model.width}, each one of {model.num_codes}{beneath}"),
        ("network", f"{model.prior}, {model.layers} layers of {model.hidden} channels"),
        ("reach", _reach(model)),
        ("scale", f"nats a code: uniform {math.log(model.num_codes):.3f}, by frequency alone {unigram:.3f}"),
    ]


def _reach(model: PriorConfig) -> str:
    if model.reach is None:
        return "all earlier codes"
    largest = max(model.height, model.width) - 1
    advice = (
        "" if model.reach >= largest else f"; the map has {largest}: more --layers or a larger --kernel would see all"
    )
    return f"{model.reach} rows and columns back{advice}"
