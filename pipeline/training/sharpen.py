"""Train the decoder of a finished stage 1 further, its codes untouched: what `gen sharpen` calls."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
from torch import Tensor, nn

from pipeline import processes
from pipeline.config.arguments import SharpenArguments
from pipeline.config.data import ARRAY, DataConfig
from pipeline.config.options import OptionDict, Options, build, flatten, given
from pipeline.config.training import TrainingConfig
from pipeline.data.image_set import ImageSet
from pipeline.data.splits import Split, load_split
from pipeline.errors import UsageError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.card import write_card
from pipeline.runs.layout import LOGS, RECONSTRUCTIONS, SHARP, SPLIT, RunFolder
from pipeline.runs.loading import LoadedVQVAE, check_decoder_codes, load_vqvae
from pipeline.runs.lock import locked
from pipeline.runs.opening import open_run
from pipeline.runs.saved import DecoderRun, codes_in_words, images_in_words
from pipeline.runs.status import StatusFile
from pipeline.storage import check_paths
from pipeline.training import previews
from pipeline.training.inputs.batches import ImageBatches
from pipeline.training.inputs.features import check_classes, fill_features
from pipeline.training.inputs.images import check_unchanged, load_image_set
from pipeline.training.launch import (
    Launch,
    Trained,
    check_fits,
    check_processes,
    cost,
    fit_to_processes,
    seeded_weights,
    train_and_publish,
)
from pipeline.training.loop.trainer import Trainer
from pipeline.training.resume import (
    BOTH_LENGTHS,
    DoneAlreadyError,
    check_free,
    check_left_out,
    folder_of_checkpoint,
    saved_run,
)
from pipeline.training.stage1 import check_settled, patience_without_effect
from pipeline.training.tracking import show_picture
from stage1_vqvae import DecoderTask, ObjectiveConfig, VQVAEConfig

_PART_OF_STAGE_1 = 4  # a decoder is trained for this part of the steps of stage 1, unless told otherwise


def sharpen(
    run: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    log: str | None = None,
    data: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[SharpenArguments],
) -> Trained:
    """Train the decoder of a run's stage 1 further for sharp pictures, into RUN/vqvae/decoders/sharp.

    Encoder, bottlenecks and levels are frozen: codes, and the priors of them, stay what they are, and a prior may be
    trained before, after or meanwhile. `run`: by default the newest with a stage 1. `data`, or `images` with `targets`:
    where the images of stage 1 are now, if not where they were. `options` are the fields of ObjectiveConfig and
    TrainingConfig; those of the training not given are those of stage 1, but for its micro-batches and its precision,
    which follow the machine, and with a quarter of its steps. `resume`: "auto",
    or a checkpoint's path. `reporter`: by default progress is shown in a terminal or a notebook; Silent() shows none.
    Raises GenError.
    """
    check_paths(run=run, resume=resume)
    asked, checkpoint = given(dict(options)), None if resume is None else str(resume)
    stage = folder_of_checkpoint(checkpoint)
    check_left_out(checkpoint, ["--run"] if stage and run is not None else [])
    named = run_of(stage) if stage else run
    opened = processes.alike(
        processes.start(), lambda: open_run(named, "vqvae", "plain"), repr, f"the run {named or ''}"
    )
    opened.check_is_own()
    folder = opened.folder
    launch = Launch(asked, processes.start(log, folder.path / LOGS), reporter or reporter_for_api(), checkpoint)
    name = str(folder.decoder(SHARP).relative_to(folder.path))
    with StatusFile(folder.path, name, launch.accelerator, launch.reporter) as status:
        check_settled(folder)
        saved = _saved(launch, folder)
        vqvae = load_vqvae(opened, launch.accelerator.device)
        settings = _new_run(vqvae, launch) if saved is None else saved
        check_decoder_codes(folder, settings, vqvae.codes_sha256)
        check_processes(settings.training, launch.accelerator)
        _check_fits(launch, vqvae, settings)
        now = given({"data": ARRAY if images is not None else data})
        image_set = load_image_set(*build(flatten(vqvae.config.data) | now, DataConfig), images, targets, launch)
        check_unchanged(folder, vqvae.config, image_set)
        check_classes(settings.objective, image_set, vqvae.config.data.data)
        return _train(launch, status, folder, settings, vqvae, image_set)


def run_of(stage: Path) -> Path:
    """The run that the decoder in a folder belongs to. Raises UsageError where it is the folder of another stage."""
    run = stage.parents[min(2, len(stage.parents) - 1)]
    if stage != RunFolder(run).decoder(SHARP):
        raise UsageError(
            f"{stage} holds no sharp decoder: `gen sharpen` goes on with checkpoints in RUN/vqvae/decoders/{SHARP}"
        )
    return run


def _saved(launch: Launch, folder: RunFolder) -> DecoderRun | None:
    """The training to go on with, the same on every process; None to begin a new one."""
    stage = folder.decoder(SHARP)
    try:
        saved = processes.alike(
            launch.accelerator,
            lambda: saved_run(stage, DecoderRun, launch.resume, launch.options),
            repr,
            f"the decoder in {stage}",
        )
    except DoneAlreadyError:
        processes.on_main(launch.accelerator, lambda: write_card(folder))  # a killed command has left it out
        raise
    if saved is not None and (idle := patience_without_effect(launch.options, keeps_latest=True)):
        raise UsageError(*idle)
    return saved


def _new_run(vqvae: LoadedVQVAE, launch: Launch) -> DecoderRun:
    """A new training as asked for. Raises UsageError for all that is wrong with it."""
    resolved = _with_defaults(vqvae.config.training, launch.options)
    objective, training = build(resolved, ObjectiveConfig, TrainingConfig)
    idle = objective.idle(launch.options, "")
    wrong = [f"--{name.replace('_', '-')} belongs to {owner}; leave it out" for name, owner in idle.items()]
    wrong += patience_without_effect(launch.options, keeps_latest=True)
    if wrong:
        raise UsageError("\n".join(wrong))
    return DecoderRun(
        objective=objective,
        training=fit_to_processes(training, launch.accelerator),
        codes_sha256=vqvae.codes_sha256,
    )


def _with_defaults(stage1: TrainingConfig, asked: Options) -> OptionDict:
    """The options given; else those that stage 1 was trained with, but for its length, its patience, and what its
    machine decided."""
    if {"steps", "max_minutes"} <= asked.keys():
        raise UsageError(BOTH_LENGTHS)
    length = {"steps": max(1, (stage1.steps or 0) // _PART_OF_STAGE_1)}
    other = {"max_minutes": None, "patience": 0, "micro_batches": None, "precision": "auto"}
    return {**flatten(stage1), **({"steps": None} if "max_minutes" in asked else length), **other, **asked}


def _check_fits(launch: Launch, vqvae: LoadedVQVAE, settings: DecoderRun) -> None:
    """Raise UsageError or ResourceError where a training of the whole stage 1 with these losses would not fit: that of
    its decoder needs a little less."""
    model = vqvae.config.model
    shape = {"channels": model.channels, "height": model.height, "width": model.width}
    sharp = flatten(model) | flatten(settings.objective) | {"objective": "sharp"}
    (whole,) = build(sharp, VQVAEConfig, derived=shape)
    check_fits(launch, replace(vqvae.config, model=whole, training=settings.training))


def _train(
    launch: Launch,
    status: StatusFile,
    folder: RunFolder,
    settings: DecoderRun,
    vqvae: LoadedVQVAE,
    image_set: ImageSet,
) -> Trained:
    stage, seed = folder.decoder(SHARP), settings.training.seed
    parts = load_split(folder.vqvae / SPLIT)  # of the run: what was set aside then is set aside now
    with seeded_weights(seed):
        task = DecoderTask(vqvae.network, settings.objective)

    def begin() -> None:
        if task.sharp.features is not None:
            fill_features(task.sharp.features, image_set, parts, seed, launch)

    def preview(evaluated: nn.Module) -> None:
        assert isinstance(evaluated, DecoderTask)
        picture = previews.reconstructions(evaluated.vqvae, image_set, parts)
        show_picture(launch.accelerator, stage / RECONSTRUCTIONS, picture, trainer.state.record.step)

    trainer = Trainer(
        task=task,
        data=ImageBatches(image_set, parts, vqvae.config.data.flip, seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=stage,
        reporter=launch.reporter,
        preview=preview,
        begin=begin,
    )
    with locked(stage, launch.accelerator):
        check_free(stage, launch.resume)
        check_settled(folder)  # once more: reading the images has taken its time
        return train_and_publish(launch, status, trainer, folder, settings, _facts(vqvae, parts), [])


def _facts(vqvae: LoadedVQVAE, parts: Split) -> list[tuple[str, str]]:
    return [
        ("task", "train the decoder of stage 1 further, for sharp pictures"),
        ("data", f"{vqvae.config.data.data}: {len(parts.train):,} images to train on"),
        ("set aside", f"{len(parts.validation):,} images for validation"),
        ("images", images_in_words(vqvae.config.model)),
        ("codes", f"{codes_in_words(vqvae.config.model)}, which stay as they are"),
        cost(vqvae.config.model),
    ]
