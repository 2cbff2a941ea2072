"""Train stage 1: what `gen train-vqvae` calls."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
from torch import Tensor, nn

from pipeline import processes
from pipeline.config.arguments import VQVAEArguments
from pipeline.config.data import ARRAY, EMBEDDED, NAMED, DataConfig
from pipeline.config.options import OptionDict, Options, build, flatten, given
from pipeline.config.presets import PresetName
from pipeline.config.training import TrainingConfig
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import test_files_fingerprint
from pipeline.data.record import save_hashes, write_skipped
from pipeline.data.splits import Split, pixel_variance, save_split, split
from pipeline.errors import UsageError
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.card import write_card
from pipeline.runs.layout import (
    BAD_IMAGES,
    CONFIG,
    IMAGE_HASHES,
    IN_PROGRESS,
    LOGS,
    RECONSTRUCTIONS,
    RUNS,
    SPLIT,
    RunFolder,
    is_finished,
)
from pipeline.runs.lock import locked
from pipeline.runs.saved import PriorRun, VQVAERun, codes_in_words, images_in_words, read_config
from pipeline.runs.status import StatusFile
from pipeline.storage import check_paths, is_path
from pipeline.training import previews
from pipeline.training.inputs.batches import ImageBatches
from pipeline.training.inputs.features import check_classes, fill_features
from pipeline.training.inputs.images import check_unchanged, load_image_set
from pipeline.training.inputs.initial import as_saved, begin_from, check_same_network, load_initial
from pipeline.training.launch import (
    Launch,
    Trained,
    check_fits,
    check_processes,
    cost,
    fit_to_processes,
    resolve_options,
    resume_command,
    seeded_weights,
    train_and_publish,
)
from pipeline.training.loop.trainer import Trainer
from pipeline.training.resume import DoneAlreadyError, check_free, check_left_out, folder_of_checkpoint, saved_run
from pipeline.training.tracking import show_picture
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask

CONFIGS = (DataConfig, VQVAEConfig, TrainingConfig)
_CLASSES_SHOWN = 10


def train_vqvae(
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    init: str | Path | None = None,
    log: str | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[VQVAEArguments],
) -> Trained:
    """Learn a codebook, into OUT/vqvae.

    `options` are the fields of DataConfig, VQVAEConfig and TrainingConfig; those not given come from `config` (a
    config.json that a run saved), then from `preset`. `images`, uint8 (n, 1 or 3, h, w), may stand in place of
    `data`, with integer `targets` (n,) as classes. `init`: a run whose stage 1 the training begins from, in place of
    random weights, with its architecture; images may be of another size. `resume`: "auto", or a checkpoint's path.
    `reporter`: by default progress is shown in a terminal or a notebook; Silent() shows none. Raises GenError.
    """
    check_paths(out=out, resume=resume, config=config, init=init)
    asked = asked_options(dict(options), images)
    checkpoint = None if resume is None else str(resume)
    stage = folder_of_checkpoint(checkpoint)
    again = {"--preset": preset, "--config": config, "--init": init, "--out": out if stage else None}
    check_left_out(checkpoint, given(again))
    run = RunFolder(stage.parent if stage else Path(out or default_folder(asked)))
    launch = Launch(asked, processes.start(log, run.path / LOGS), reporter or reporter_for_api(), checkpoint)
    with StatusFile(run.path, "vqvae", launch.accelerator, launch.reporter) as status:
        saved = _saved(launch, run)
        if saved is None:
            settings, image_set = _begun(launch, run, preset, config, init, images, targets)
        else:
            settings = _resumed(launch, run, saved)
            image_set = load_image_set(settings.data, images, targets, launch)
            check_unchanged(run, saved, image_set)
        return _train(launch, status, run, settings, image_set)


def _saved(launch: Launch, run: RunFolder) -> VQVAERun | None:
    """The run to go on with, the same on every process; None to begin a new one."""

    def read() -> VQVAERun | None:
        return saved_run(run.vqvae, VQVAERun, launch.resume, launch.options)

    try:
        return processes.alike(launch.accelerator, read, repr, f"the run in {run.path}")
    except DoneAlreadyError:
        processes.on_main(launch.accelerator, lambda: write_card(run))  # a command killed at its end has left it out
        raise


def _begun(
    launch: Launch,
    run: RunFolder,
    preset: PresetName | None,
    config: str | Path | None,
    init: str | Path | None,
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
) -> tuple[VQVAERun, ImageSet]:
    """A new run as asked for, and its images."""
    if launch.resume and "data" not in launch.options:
        raise UsageError(
            f"there is nothing to resume in {run.path}; name the run with --out, or its images with --data"
        )
    if init is not None and preset is not None:
        raise UsageError(f"--preset {preset} sizes a network, and --init begins from one; leave one of them out")
    initial = None if init is None else load_initial(init, launch)
    network = None if initial is None else initial.config.model
    wanted = new_options(launch.options, preset, config, network)
    if init is not None and network is not None:  # the channels are known once the images have been read
        check_same_network(init, network, replace(wanted.model, channels=network.channels))
    test_data = wanted.data.test_data
    test_fingerprint = processes.alike(
        launch.accelerator, lambda: test_files_fingerprint(test_data) if test_data else None, str, str(test_data)
    )
    image_set = load_image_set(wanted.data, images, targets, launch)
    begun = replace(_new_run(wanted, image_set, launch), test_fingerprint=test_fingerprint)
    if init is not None and initial is not None:
        check_same_network(init, initial.config.model, begun.model)
        begun = replace(begun, init=as_saved(init, initial))
    return begun, image_set


def asked_options(options: Options, images: np.ndarray | Tensor | None) -> OptionDict:
    """The options that were given, images as an array among them, and the test part by its absolute path."""
    asked = given(options) | ({} if images is None else {"data": ARRAY})
    test_data = asked.get("test_data")
    return asked | ({"test_data": _absolute(str(test_data), NAMED)} if is_path(test_data) else {})


def _resumed(launch: Launch, run: RunFolder, saved: VQVAERun) -> VQVAERun:
    """The saved run, with its images where they are now.

    Raises UsageError where a prior belongs to the weights: further training would change its codes.
    """
    check_processes(saved.training, launch.accelerator)
    if any((decoder / IN_PROGRESS).exists() for decoder in run.decoders.glob("*")):
        raise UsageError(
            f"the decoders in {run.decoders} belong to these weights; delete them, or go on with "
            f"a copy of {run.vqvae} without them in a new run folder"
        )
    if any(map(_is_begun, run.priors.glob("*"))):
        raise UsageError(
            f"the prior in {run.priors} belongs to these weights; copy {run.vqvae} into a new run folder to go on there"
        )
    if idle := patience_without_effect(launch.options, keeps_latest=saved.model.keeps_latest):
        raise UsageError(*idle)
    moved = {name: launch.options[name] for name in ("data", "label_file", "memory_gib") if name in launch.options}
    (data,) = build({**flatten(saved.data), **moved}, DataConfig)
    return replace(saved, data=_with_absolute_paths(data))


def check_settled(folder: RunFolder, otherwise: str = "") -> None:
    """Raise UsageError when stage 1 is being trained further: its codes would not be those that are learned."""
    if (folder.vqvae / IN_PROGRESS).exists() and is_finished(folder.vqvae):
        done, wanted = (read_config(folder.vqvae, VQVAERun, name).training.steps or 0 for name in (CONFIG, IN_PROGRESS))
        if wanted > done:
            raise UsageError(
                f"{folder.vqvae} has done {done} steps and is to do {wanted}: finish it with "
                f"`{resume_command(folder.vqvae)}`{otherwise}"
            )


def _is_begun(prior: Path) -> bool:
    begun = read_config(prior, PriorRun, IN_PROGRESS) if (prior / IN_PROGRESS).exists() else None
    return is_finished(prior) or (begun is not None and begun.training.steps is not None)


class StageOptions(NamedTuple):
    """Checked options, before the images have been looked at."""

    data: DataConfig
    model: VQVAEConfig
    training: TrainingConfig


def new_options(
    asked: Options, preset: str | None, config: str | Path | None, network: VQVAEConfig | None = None
) -> StageOptions:
    """Options of a new run: given, from a config.json, of the network begun from, from the preset.

    Raises UsageError for all that is wrong.
    """
    data = asked.get("data", EMBEDDED)
    default = "digits" if isinstance(data, str) and data == EMBEDDED else "base"
    architecture = None if network is None else flatten(network)
    resolved = resolve_options("vqvae", asked, default if preset is None else preset, config, CONFIGS, architecture)
    # Any image will do to check the options: this one is divisible by every stride allowed.
    shape = {"channels": 1, "height": 2**15, "width": 2**15}
    options = StageOptions(*build(resolved, DataConfig, VQVAEConfig, TrainingConfig, derived=shape))
    _check_have_effect(asked, options.model, options.data.without_effect(set(asked)))
    return options


def _check_have_effect(asked: Options, model: VQVAEConfig, others: Sequence[str] = ()) -> None:
    """Raise UsageError for options that mean nothing to this model, and for `others` of which this is known."""
    patience = patience_without_effect(asked, keeps_latest=model.keeps_latest)
    if idle := [*others, *model.without_effect(asked), *patience]:
        raise UsageError("\n".join(idle))


def patience_without_effect(asked: Options, *, keeps_latest: bool) -> list[str]:
    """A message where patience is asked for and no best weights are looked for."""
    if not (asked.get("patience") and keeps_latest):
        return []
    return [
        f"--patience {asked['patience']} belongs to trainings whose best weights are kept, and here the latest are; "
        "leave it out"
    ]


def _new_run(options: StageOptions, image_set: ImageSet, launch: Launch) -> VQVAERun:
    channels, height, width = image_set.shape
    shape = {"channels": channels, "height": height, "width": width}
    (model,) = build(flatten(options.model), VQVAEConfig, derived=shape)
    model = model.resolved()
    _check_have_effect(launch.options, model)
    if model.objective == "sharp":
        check_classes(model, image_set, options.data.data)
    return VQVAERun(
        model=model,
        training=fit_to_processes(options.training, launch.accelerator),
        data=_with_absolute_paths(options.data),
        fingerprint=image_set.fingerprint,
        class_names=image_set.class_names,
    )


def _train(launch: Launch, status: StatusFile, run: RunFolder, settings: VQVAERun, image_set: ImageSet) -> Trained:
    seed = settings.training.seed
    parts = split(len(image_set.images), settings.data, seed)
    check_fits(launch, settings)
    with seeded_weights(seed):
        task = VQVAETask(VQVAE(settings.model, pixel_variance(image_set, parts.train)))

    def begin() -> None:
        if settings.init is not None:
            begin_from(task.network, settings.init, launch)
            task.codebooks_given = True
        if task.sharp is not None and task.sharp.features is not None:
            fill_features(task.sharp.features, image_set, parts, settings.training.seed, launch)

    def preview(evaluated: nn.Module) -> None:
        assert isinstance(evaluated, VQVAETask)
        picture = previews.reconstructions(evaluated.network, image_set, parts)
        show_picture(launch.accelerator, run.vqvae / RECONSTRUCTIONS, picture, trainer.state.record.step)

    def record() -> None:
        save_split(run.vqvae / SPLIT, parts)
        is_begun = (run.vqvae / IN_PROGRESS).exists()  # on these images, as has been checked
        if not (is_begun and (run.vqvae / IMAGE_HASHES).exists()):
            save_hashes(run.vqvae / IMAGE_HASHES, image_set)
        write_skipped(run.vqvae / BAD_IMAGES, image_set)

    trainer = Trainer(
        task=task,
        data=ImageBatches(image_set, parts, settings.data.flip, seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=run.vqvae,
        reporter=launch.reporter,
        preview=preview,
        begin=begin,
    )
    with locked(run.vqvae, launch.accelerator):
        check_free(run.vqvae, launch.resume)
        processes.on_main(launch.accelerator, record)
        return train_and_publish(launch, status, trainer, run, settings, _facts(settings, image_set, parts), [SPLIT])


def _facts(settings: VQVAERun, image_set: ImageSet, parts: Split) -> list[tuple[str, str]]:
    model, names = settings.model, image_set.class_names
    shown = ", ".join(names[:_CLASSES_SHOWN]) + (", ..." if len(names) > _CLASSES_SHOWN else "")
    tested = f"{len(parts.test):,} for testing" if settings.data.test_data is None else settings.data.test_data
    return [
        ("task", f"learn {'a codebook' if model.is_discrete else 'an autoencoder'} (stage 1)"),
        ("data", f"{settings.data.data}: {len(parts.train):,} images to train on"),
        ("set aside", f"{len(parts.validation):,} images for validation, {tested}"),
        *([("classes", f"{len(names)}: {shown}")] if names else []),
        ("images", images_in_words(model)),
        ("codes", codes_in_words(model)),
        *([] if settings.init is None else [("begun from", str(settings.init))]),
        cost(model),
    ]


def default_folder(asked: Options) -> Path:
    """runs/NAME, where the name is that of the data."""
    data = Path(str(asked.get("data", EMBEDDED))).expanduser()
    parts = (data.stem, data.parent.name)  # of a pattern what comes before its first star
    return RUNS / next((name for part in parts if (name := re.split(r"[*?[]", part)[0].rstrip("-_."))), "images")


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    label_file = None if data.label_file is None else _absolute(data.label_file)
    return replace(data, data=_absolute(data.data), label_file=label_file)


def _absolute(data: str, names: tuple[str, ...] = (EMBEDDED, ARRAY, *NAMED)) -> str:
    return data if data in names else str(Path(data).expanduser().resolve())
