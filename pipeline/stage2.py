"""Train stage 2: what `gen train-prior` calls."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline import previews, processes
from pipeline.batches import CodeBatches
from pipeline.checkpoint import CONFIG, EVALUATION, WEIGHTS, is_finished
from pipeline.codes import CodeMaps, extract, read_current, unigram_entropy
from pipeline.continuing import check_alone, folder_of_checkpoint, saved_run
from pipeline.data import ARRAY, EMBEDDED, Split, class_weights
from pipeline.errors import UsageError
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
from pipeline.options import build
from pipeline.reporting import Reporter, Silent
from pipeline.run import (
    DRAWN_FROM_NORMAL,
    SPLIT,
    LoadedVQVAE,
    PriorRun,
    RunFolder,
    VQVAERun,
    check_belongs,
    find_run,
    load_vqvae,
    read_config,
)
from pipeline.settings import TrainingConfig
from pipeline.stage1 import check_unchanged, load
from pipeline.storage import atomic_folder, load_tensors, read_json, sha256, verify
from pipeline.training import Trainer
from stage2_prior import PixelCNN, PixelCNNConfig, PriorTask

CONFIGS = (PixelCNNConfig, TrainingConfig)
LEVEL = 0


def train_prior(
    run: str | Path | None = None,
    *,
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
    """Learn the distribution of a run's codes, into RUN/prior/0; by default the newest run with a codebook.

    `out`: another run folder, to which the frozen stage 1 is copied first. `data`, or `images` with `targets`: where
    the images of stage 1 are now, if not where they were; needed only until the codes are extracted. `options` are
    the fields of PixelCNNConfig and TrainingConfig; those not given come from `config`, then from `preset`.
    `resume`: "auto", or a checkpoint's path. `force`: go on with a collapsed codebook. Raises GenError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    stage = folder_of_checkpoint(resume)
    check_alone(resume, **{"--preset": preset, "--config": config, "RUN or --out": (run or out) if stage else None})
    source = RunFolder(stage.parent.parent) if stage else find_run(run, "vqvae")
    folder = RunFolder(Path(out)) if out and not stage else source
    launch = Launch(given, processes.start(log, folder.prior), reporter or Silent(), resume)
    saved = saved_run(folder.prior, PriorRun, resume, given)
    default = "digits" if _data_of(source) == EMBEDDED else "base"
    new = {} if saved else merge("prior", given, preset or default, config, CONFIGS)
    if not saved:
        build(CONFIGS, new, {})  # report all bad options before any work
    _check_one_level_of_integers(source)
    _copy_stage1(source, folder, launch)
    vqvae = load_vqvae(folder, launch.accelerator.device)
    if not saved and not force:
        check_codebook(folder, vqvae.config.model, read_json(folder.vqvae / EVALUATION))
    if saved:
        check_processes(saved.training, launch.accelerator)
        check_belongs(folder, saved, vqvae.sha256)
    maps = _code_maps(folder, vqvae, data, images, targets, launch)
    settings = saved or _new_run(new, vqvae, maps["train"], launch)
    return _train(launch, folder, settings, vqvae, maps)


def _check_one_level_of_integers(folder: RunFolder) -> None:
    """Raise UsageError for codes that no prior can be trained on."""
    model = read_config(folder.vqvae, VQVAERun).model
    if not model.is_discrete:
        draw = f"; `gen sample {folder.path}` draws from N(0, I)" if model.bottleneck in DRAWN_FROM_NORMAL else ""
        raise UsageError(
            f"the codes of {folder.vqvae} are numbers (--bottleneck {model.bottleneck}), and a prior needs integers: "
            f"train stage 1 with vq, gumbel or fsq{draw}"
        )
    if model.levels > 1:
        raise UsageError(
            f"{folder.vqvae} has {model.levels} levels of codes, and priors over more than 1 are not built yet; `gen "
            "encode`, `gen decode` and `gen reconstruct` take them all"
        )


def _data_of(source: RunFolder) -> str:
    return read_config(source.vqvae, VQVAERun).data.data


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
    data: str | None,
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
    launch: Launch,
) -> dict[str, CodeMaps]:
    """The codes of both parts of stage 1's split: those on disk if they are still right, else extracted now."""
    config = vqvae.config.data
    identity = codes_identity(vqvae)
    current = read_current(folder.codes, identity)
    if current is not None:
        launch.reporter.say(f"using the codes in {folder.codes}")
        return current
    where = ARRAY if images is not None else data
    image_set = load(replace(config, data=where or config.data), images, targets, launch)
    check_unchanged(folder, vqvae.config, image_set)
    parts = {name: tensor.numpy() for name, tensor in load_tensors(folder.vqvae / SPLIT).items()}
    launch.reporter.say(f"encoding {len(image_set.images):,} images into {folder.codes}")
    return extract(folder.codes, vqvae.model, identity, image_set, Split(**parts), launch.accelerator)


def codes_identity(vqvae: LoadedVQVAE) -> dict[str, str]:
    """What extracted codes depend on."""
    data = vqvae.config.data
    return {
        "vqvae_sha256": vqvae.sha256,
        "fingerprint": vqvae.config.fingerprint,
        "flip": "yes" if data.flip else "no",
    }


def _new_run(options: dict[str, Any], vqvae: LoadedVQVAE, train: CodeMaps, launch: Launch) -> PriorRun:
    _, height, width = train.levels[LEVEL].shape
    names = vqvae.config.class_names
    shape = {
        "height": height,
        "width": width,
        "num_codes": vqvae.config.model.num_codes,
        "num_classes": len(names),
    }
    model, training = build(CONFIGS, options, shape)
    weights = () if train.labels is None else tuple(class_weights(train.labels.numpy(), len(names)).tolist())
    return PriorRun(
        model=model,
        training=fit_to_processes(training, launch.accelerator),
        level=LEVEL,
        vqvae_sha256=vqvae.sha256,
        class_names=names,
        class_weights=weights,
    )


def _train(
    launch: Launch, folder: RunFolder, settings: PriorRun, vqvae: LoadedVQVAE, maps: dict[str, CodeMaps]
) -> Trained:
    with seeded_weights(settings.training.seed):
        task = PriorTask(PixelCNN(settings.model))

    def preview(trained: nn.Module) -> None:
        assert isinstance(trained, PriorTask)
        picture = previews.samples(trained.prior, settings, vqvae.model)
        if launch.accelerator.is_main_process:
            previews.write(folder.prior / "samples.png", picture)

    make_folder(folder.prior, launch.accelerator)
    trainer = Trainer(
        task=task,
        data=CodeBatches(maps["train"], maps["held_out"], LEVEL, settings.training.seed),
        config=settings.training,
        accelerator=launch.accelerator,
        folder=folder.prior,
        reporter=launch.reporter,
        metric="nats",
        preview=preview,
    )
    return carry_out(launch, trainer, folder, settings, _facts(folder, settings, maps), [])


def _facts(folder: RunFolder, settings: PriorRun, maps: dict[str, CodeMaps]) -> list[tuple[str, str]]:
    model = settings.model
    codes = maps["train"].levels[LEVEL]
    unigram = unigram_entropy(codes, model.num_codes)
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    return [
        ("task", "learn the distribution of codes (stage 2)"),
        ("data", f"{folder.codes}: {len(codes):,} maps, {len(maps['held_out']):,} more held out{classes}"),
        ("codes", f"{model.height} x {model.width}, each one of {model.num_codes}"),
        ("reach", _reach(model)),
        ("scale", f"nats a code: uniform {math.log(model.num_codes):.3f}, by frequency alone {unigram:.3f}"),
    ]


def _reach(model: PixelCNNConfig) -> str:
    largest = max(model.height, model.width) - 1
    advice = (
        "" if model.reach >= largest else f"; the map has {largest}: more --layers or a larger --kernel would see all"
    )
    return f"{model.reach} rows and columns back{advice}"
