"""Train stage 2: what `gen train-prior` calls."""

import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from pipeline import previews, processes
from pipeline.batches import CodeBatches
from pipeline.checkpoint import CONFIG, EVALUATION, IN_PROGRESS, WEIGHTS, is_finished
from pipeline.codes import AugmentConfig, CodeMaps, extract, read_current, unigram_entropy, views_of
from pipeline.continuing import check_alone, folder_of_checkpoint, saved_run
from pipeline.data import ARRAY, EMBEDDED, Split, class_weights
from pipeline.errors import CheckpointError, UsageError
from pipeline.health import check_codebook
from pipeline.launch import (
    Launch,
    Trained,
    carry_out,
    check_processes,
    fit_to_processes,
    make_folder,
    merge,
    seeded_weights,
)
from pipeline.options import build, option_fields
from pipeline.reporting import Reporter, Silent
from pipeline.run import (
    DRAWN_FROM_NORMAL,
    SPLIT,
    LoadedVQVAE,
    PriorRun,
    RunFolder,
    VQVAERun,
    as_json,
    check_belongs,
    find_run,
    load_vqvae,
    read_config,
)
from pipeline.settings import TrainingConfig, preset_for
from pipeline.stage1 import check_unchanged, load
from pipeline.storage import atomic_folder, load_tensors, read_json, sha256, verify, write_json
from pipeline.training import Trainer
from stage1_vqvae import VQVAEConfig
from stage2_prior import PriorConfig, PriorTask, make_prior

CONFIGS = (PriorConfig, TrainingConfig, AugmentConfig)


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
    """Learn the distribution of a run's codes, into RUN/prior/LEVEL; by default of the newest run with a codebook.

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
    plan = _plan(source, folder, _level_of(stage) if stage else level, launch, preset, config)
    _copy_stage1(source, folder, launch)
    vqvae = load_vqvae(folder, launch.accelerator.device)
    plan.check(folder, vqvae, launch, force)
    maps = _code_maps(folder, vqvae, plan.augmentation(), data, images, targets, launch)
    runs = plan.runs(vqvae, maps["train"], launch)
    _promise(folder, runs, launch)
    done = [_train(replace(launch, started=time.perf_counter()), folder, run, vqvae, maps) for run in runs]
    return _together(dict(zip(plan.saved, done, strict=True)))


def _level_of(stage: Path) -> int:
    if stage.parent.name != "prior" or not stage.name.isdigit():
        raise CheckpointError(f"{stage} holds no prior; resume it with `gen train-vqvae`")
    return int(stage.name)


class _Plan(NamedTuple):
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
        """The runs of all levels: as saved, or new ones that share the minutes which are left."""
        minutes = self.options.get("max_minutes")
        left = max(1e-3, (minutes or 0) - (time.perf_counter() - launch.started) / 60)
        shares = self._shares(vqvae.config.model)
        timed = {level: {"max_minutes": left * share} if minutes else {} for level, share in shares.items()}
        return [
            saved or _new_run(self.options | timed[level], vqvae, train, level, self.augmentation(), launch)
            for level, saved in self.saved.items()
        ]

    def _shares(self, model: VQVAEConfig) -> dict[int, float]:
        """How new levels share the time: by their positions, each a tenth at least."""
        positions = {level: math.prod(model.grids[level]) for level, saved in self.saved.items() if saved is None}
        shares = {level: max(0.1, count / sum(positions.values())) for level, count in positions.items()}
        return {level: share / sum(shares.values()) for level, share in shares.items()}


def _plan(
    source: RunFolder,
    folder: RunFolder,
    level: int | None,
    launch: Launch,
    preset: str | None,
    config: str | Path | None,
) -> _Plan:
    vqvae = read_config(source.vqvae, VQVAERun)
    levels = _levels(folder, vqvae, level, launch)
    saved = {number: saved_run(folder.prior(number), PriorRun, launch.resume, launch.options) for number in levels}
    new = [number for number, found in saved.items() if found is None]
    return _Plan(saved, _new_options(source, vqvae, launch, preset, config, new) if new else {})


def _promise(folder: RunFolder, runs: list[PriorRun], launch: Launch) -> None:
    """Of several levels write down how each will be trained: whatever interrupts one, all resume as asked for."""
    for run in runs if len(runs) > 1 else []:
        place = folder.prior(run.level)
        make_folder(place, launch.accelerator)
        if launch.accelerator.is_main_process and not (place / IN_PROGRESS).exists():
            write_json(place / IN_PROGRESS, as_json(run))
    launch.accelerator.wait_for_everyone()


def _levels(folder: RunFolder, vqvae: VQVAERun, level: int | None, launch: Launch) -> list[int]:
    """The levels to train: all, or the one asked for; a resumed run leaves finished ones out, unless all are.

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
    levels = list(range(model.levels)) if level is None else [level]
    unfinished = [number for number in levels if not is_finished(folder.prior(number))]
    return levels if launch.resume is None else unfinished or levels


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


def _together(done: dict[int, Trained]) -> Trained:
    """The trainings of several levels as one: steps added up, evaluations with the level's number in their names."""
    first, *others = done.values()
    if not others:
        return first
    held_out = {f"{name}_{level}": value for level, one in done.items() for name, value in one.held_out.items()}
    return Trained(first.run, sum(one.steps for one in done.values()), held_out)


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
    data: str | None,
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
    launch: Launch,
) -> dict[str, CodeMaps]:
    """The codes of both parts of stage 1's split: those on disk if they are still right, else extracted now."""
    config = vqvae.config.data
    identity = codes_identity(vqvae, augment)
    current = read_current(folder.codes, identity)
    if current is not None:
        launch.reporter.say(f"using the codes in {folder.codes}")
        return current
    where = ARRAY if images is not None else data
    image_set = load(replace(config, data=where or config.data), images, targets, launch)
    check_unchanged(folder, vqvae.config, image_set)
    parts = {name: tensor.numpy() for name, tensor in load_tensors(folder.vqvae / SPLIT).items()}
    views = views_of(augment, config.flip)
    times = f", each {len(views)} times" if len(views) > 1 else ""
    launch.reporter.say(f"encoding {len(image_set.images):,} images{times} into {folder.codes}")
    return extract(folder.codes, vqvae.model, identity, image_set, Split(**parts), views, launch.accelerator)


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

    make_folder(place, launch.accelerator)
    trainer = Trainer(
        task=task,
        data=CodeBatches(maps["train"], maps["held_out"], level, settings.training.seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=place,
        reporter=launch.reporter,
        metric="nats",
        preview=preview,
    )
    return carry_out(launch, trainer, folder, settings, _facts(folder, settings, maps), [])


def _facts(folder: RunFolder, settings: PriorRun, maps: dict[str, CodeMaps]) -> list[tuple[str, str]]:
    model, train = settings.model, maps["train"]
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    encodings = f", in {1 + len(train.views)} encodings" if train.views else ""
    beneath = f", beneath {len(model.coarser)} coarser levels" if model.coarser else ""
    unigram = unigram_entropy(train.levels[settings.level], model.num_codes)
    return [
        ("task", f"learn the distribution of codes of level {settings.level} (stage 2)"),
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
