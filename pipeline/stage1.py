"""Train stage 1: what `gen train-vqvae` calls."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import previews, processes
from pipeline.batches import ImageBatches
from pipeline.checkpoint import IN_PROGRESS, is_finished
from pipeline.claim import alone_in
from pipeline.continuing import check_alone, check_free, folder_of_checkpoint, saved_run
from pipeline.data import (
    ARRAY,
    EMBEDDED,
    NAMED,
    DataConfig,
    ImageSet,
    Split,
    from_array,
    load_images,
    pixel_variance,
    split,
)
from pipeline.errors import DataError, UsageError
from pipeline.launch import (
    Launch,
    Trained,
    carry_out,
    check_processes,
    fit_to_processes,
    merge,
    seeded_weights,
)
from pipeline.options import build, flatten
from pipeline.reporting import Reporter, Silent
from pipeline.run import RUNS, SPLIT, PriorRun, RunFolder, VQVAERun, codes_in_words, read_config
from pipeline.settings import TrainingConfig
from pipeline.storage import save_tensors
from pipeline.training import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig

CONFIGS = (DataConfig, VQVAEConfig, TrainingConfig)
_NAMED = 10  # classes


def train_vqvae(
    *,
    out: str | Path | None = None,
    resume: str | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    log: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Trained:
    """Learn a codebook, into OUT/vqvae.

    `options` are the fields of DataConfig, VQVAEConfig and TrainingConfig; those not given come from `config` (a
    config.json that a run saved), then from `preset`. `images`, uint8 (n, 1 or 3, h, w), may stand in place of
    `data`, with integer `targets` (n,) as classes. `resume`: "auto", or a checkpoint's path. Raises GenError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if images is not None:
        given["data"] = ARRAY
    stage = folder_of_checkpoint(resume)
    check_alone(resume, **{"--preset": preset, "--config": config, "--out": out if stage else None})
    run = RunFolder(stage.parent if stage else Path(out or default_folder(given)))
    launch = Launch(given, processes.start(log, run.vqvae), reporter or Silent(), resume)
    saved = saved_run(run.vqvae, VQVAERun, resume, given)
    if saved:
        check_processes(saved.training, launch.accelerator)
        _check_no_prior(run)
        _check_patience(given, saved.model)
        settings = replace(saved, data=replace(saved.data, **_only_data(given)))
        image_set = load(settings.data, images, targets, launch)
        check_unchanged(run, saved, image_set)
    else:
        if resume and "data" not in given:
            raise UsageError(
                f"there is nothing to resume in {run.path}; name the run with --out, or its images with --data"
            )
        wanted = new_options(given, preset, config)
        image_set = load(wanted.data, images, targets, launch)
        settings = _new_run(wanted, image_set, launch)
    return _train(launch, run, settings, image_set)


def _is_begun(prior: Path) -> bool:
    begun = read_config(prior, PriorRun, IN_PROGRESS) if (prior / IN_PROGRESS).exists() else None
    return is_finished(prior) or (begun is not None and begun.training.steps is not None)


def _check_no_prior(run: RunFolder) -> None:
    """Further training would change the codes that a finished prior was trained on."""
    if any(map(_is_begun, run.priors.glob("*"))):
        raise UsageError(
            f"the prior in {run.priors} belongs to these weights; copy {run.vqvae} into a new run folder to go on there"
        )


class Options(NamedTuple):
    """Checked options, before the images have been looked at."""

    data: DataConfig
    model: VQVAEConfig
    training: TrainingConfig


def new_options(given: dict[str, Any], preset: str | None, config: str | Path | None) -> Options:
    """Options of a new run: given, from a config.json, from the preset. Raises UsageError for all that is wrong."""
    default = "digits" if given.get("data", EMBEDDED) == EMBEDDED else "base"
    merged = merge("vqvae", given, preset or default, config, CONFIGS)
    # Any image will do to check the options: this one is divisible by every stride allowed.
    options = Options(*build(CONFIGS, merged, {"channels": 1, "height": 2**15, "width": 2**15}))
    idle = options.model.without_effect(given)
    if idle:
        raise UsageError("\n".join(idle))
    _check_patience(given, options.model)
    return options


def _check_patience(given: dict[str, Any], model: VQVAEConfig) -> None:
    if given.get("patience") and model.keeps_latest:
        raise UsageError(
            f"--patience {given['patience']} belongs to trainings whose best weights are kept, and here the latest "
            "are; leave it out"
        )


def _new_run(options: Options, image_set: ImageSet, launch: Launch) -> VQVAERun:
    channels, height, width = image_set.shape
    shape = {"channels": channels, "height": height, "width": width}
    return VQVAERun(
        model=build([VQVAEConfig], flatten(options.model), shape)[0],
        training=fit_to_processes(options.training, launch.accelerator),
        data=replace(options.data, data=_absolute(options.data.data)),
        fingerprint=image_set.fingerprint,
        class_names=image_set.class_names,
    )


def _train(launch: Launch, run: RunFolder, settings: VQVAERun, image_set: ImageSet) -> Trained:
    seed = settings.training.seed
    parts = split(len(image_set.images), settings.data.held_out, seed)
    with seeded_weights(seed):
        task = VQVAE(settings.model, pixel_variance(image_set.images, parts.train))

    def preview(model: nn.Module) -> None:
        assert isinstance(model, VQVAE)
        picture = previews.reconstructions(model, image_set, parts)
        if launch.accelerator.is_main_process:
            previews.write(run.vqvae / "reconstructions.png", picture)

    trainer = Trainer(
        task=task,
        data=ImageBatches(image_set, parts, settings.data.flip, seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=run.vqvae,
        reporter=launch.reporter,
        metric=task.kept_by,
        preview=preview,
    )
    with alone_in(run.vqvae, launch.accelerator):
        check_free(run.vqvae, launch.resume)
        if launch.accelerator.is_main_process:
            save_tensors(run.vqvae / SPLIT, {name: torch.from_numpy(part) for name, part in parts._asdict().items()})
        return carry_out(launch, trainer, run, settings, _facts(settings, image_set, parts), [SPLIT])


def _facts(settings: VQVAERun, image_set: ImageSet, parts: Split) -> list[tuple[str, str]]:
    model = settings.model
    names = image_set.class_names
    few = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    classes = [("classes", f"{len(names)}: {few}")] if names else []
    return [
        ("task", f"learn {'a codebook' if model.is_discrete else 'an autoencoder'} (stage 1)"),
        (
            "data",
            f"{settings.data.data}: {len(parts.train):,} images, {len(parts.held_out):,} more held out",
        ),
        *classes,
        ("images", f"{model.channels} x {model.height} x {model.width}"),
        ("codes", codes_in_words(model)),
    ]


def load(
    config: DataConfig,
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
    launch: Launch,
) -> ImageSet:
    """The images of a configuration, or those given as an array; one process of a machine decodes for all."""
    if config.data == ARRAY:
        if images is None:
            raise DataError("this run was trained on an array: pass it again, as images=... and targets=...")
        return from_array(images, targets, (), config)
    launch.reporter.say(f"reading {config.data}")
    if config.data in (EMBEDDED, *NAMED) and Path(config.data).is_dir():
        launch.reporter.say(f"that is the data set of this name, not the folder here, which is ./{config.data}")
    with launch.accelerator.local_main_process_first():
        image_set = load_images(config, shared=launch.accelerator.num_processes > 1)
    if image_set.skipped:
        launch.reporter.say(f"skipped {len(image_set.skipped)} images, such as {image_set.skipped[0]}")
    if image_set.passed_over:
        launch.reporter.say(f"passed over, as no images that are read: {image_set.passed_over}")
    if config.labels and image_set.names and not image_set.class_names:
        folders = len({str(Path(name).parent) for name in image_set.names})
        if folders > 1:
            launch.reporter.say(f"no classes: images lie in {folders} folders, some of them beside folders of others")
    return image_set


def check_unchanged(run: RunFolder, saved: VQVAERun, image_set: ImageSet) -> None:
    """Raise DataError unless the images are those that a run was trained on."""
    if saved.fingerprint != image_set.fingerprint:
        raise DataError(
            f"the images are not those that {run.path} was trained on: fingerprint {image_set.fingerprint[:12]}, "
            f"trained on {saved.fingerprint[:12]}; bring the old images back, or start a new run with --out"
        )


def default_folder(given: dict[str, Any]) -> Path:
    """runs/NAME, where the name is that of the data."""
    return RUNS / (Path(str(given.get("data", EMBEDDED))).expanduser().stem or "images")


def _only_data(given: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: given[name] for name in ("data", "memory_gib") if name in given}
    return found | ({"data": _absolute(str(found["data"]))} if "data" in found else {})


def _absolute(data: str) -> str:
    return data if data in (EMBEDDED, ARRAY, *NAMED) else str(Path(data).expanduser().resolve())
