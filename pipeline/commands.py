"""What the commands do around the API: choose what to show, and say where results lie and what to type next."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Bool, UInt8

from pipeline import health, previews, processes
from pipeline import images as pictures
from pipeline.checkpoint import EVALUATION, is_finished, list_checkpoints
from pipeline.codes import CodeMaps, code_dtype, load_codes, save_codes
from pipeline.compare import compare as run_comparison
from pipeline.compare import markdown
from pipeline.completion import CompleteConfig
from pipeline.completion import complete as run_completion
from pipeline.data import DataConfig, ImageSet, load_images
from pipeline.doctor import report
from pipeline.errors import CheckpointError, UsageError
from pipeline.generate import FileConfig, SampleConfig, generate_files
from pipeline.health import brief
from pipeline.model import Model
from pipeline.model import load as load_model
from pipeline.options import build
from pipeline.reporting import Console, Reporter, Silent, table
from pipeline.run import (
    DRAWN_FROM_NORMAL,
    PriorRun,
    RunFolder,
    VQVAERun,
    check_drawable,
    codes_in_words,
    find_run,
    load_prior,
    load_vqvae,
    read_config,
)
from pipeline.samples import GRID, Samples
from pipeline.scoring import score_images, surprise_shown
from pipeline.sources import SUFFIXES
from pipeline.stage1 import default_folder
from pipeline.stage1 import train_vqvae as run_stage1
from pipeline.stage2 import train_prior as run_stage2
from pipeline.storage import load_metadata, read_json
from stage2_prior import Warp

SHOWN = 64  # images in a picture of reconstructions


def _reporter() -> Reporter:
    return Console() if _is_main() else Silent()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(text: str) -> None:
    if _is_main():
        click.echo(text)


def train_vqvae(options: dict[str, Any]) -> None:
    """Stage 1."""
    done = run_stage1(reporter=_reporter(), **options)
    config = read_config(RunFolder(done.run).vqvae, VQVAERun).model
    drawn = config.bottleneck in DRAWN_FROM_NORMAL
    after = f"train-prior {done.run}" if config.is_discrete else f"sample {done.run}" if drawn else f"info {done.run}"
    _print(f"wrote {done.run / 'vqvae'} ({brief(done.held_out)} held out); next: gen {after}")


def train_prior(run: Path | None, options: dict[str, Any]) -> None:
    """Stage 2."""
    done = run_stage2(run, reporter=_reporter(), **options)
    _print(f"wrote {done.run / 'prior'} ({brief(done.held_out)} held out); next: gen sample {done.run} --n 64")


def compare(names: str, out: Path | None, options: dict[str, Any]) -> None:
    """Several bottlenecks side by side."""
    given = {name: value for name, value in options.items() if value is not None}
    folder = out or default_folder(given).with_name(f"{default_folder(given).name}-compared")
    done = run_comparison(out=folder, bottlenecks=names.split(","), reporter=_reporter(), **given)
    _print(f"{markdown(done.rows)}wrote {done.folder}: compare.md, compare.json, compare.png, and a run for each")


def sample(run: Path | None, label: str | None, device: str | None, out: Path | None, options: dict[str, Any]) -> None:
    """New images."""
    config, warp, files = build([SampleConfig, Warp, FileConfig], options, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    _reporter().say(_what_is_drawn(folder, config, warp, files, label))
    drawn = generate_files(folder.path, label=label, device=device, out=out, reporter=_reporter(), **options)
    there = drawn.n - drawn.new
    done = f"wrote {drawn.new:,} images into" if drawn.new else "nothing was left to draw for"
    _print(f"{done} {drawn.folder}{f', where {there:,} were already' if there else ''}; see {drawn.folder / GRID}")


def _what_is_drawn(folder: RunFolder, config: SampleConfig, warp: Warp, files: FileConfig, label: str | None) -> str:
    vqvae = read_config(folder.vqvae, VQVAERun).model
    names = read_config(folder.prior(0), PriorRun).class_names if vqvae.is_discrete else ()
    classes = "none" if not names else label or f"{len(names)} as in the training data"
    sharpened = ", ".join(f"{name} {value}" for name, value in asdict(warp).items() if value is not None)
    return table(
        [
            ("task", f"draw {config.n:,} images as {files.format}, seed {config.seed}, {sharpened}"),
            ("run", str(folder.path)),
            ("codes", codes_in_words(vqvae)),
            ("images", f"{vqvae.channels} x {vqvae.height} x {vqvae.width}"),
            ("classes", classes),
        ]
    )


def reconstruct(paths: tuple[Path, ...], run: Path | None, out: Path, levels: int | None) -> None:
    """Originals above reconstructions, in one picture."""
    _refuse_existing(out)
    _check_is_picture(out)
    model = _load_stage1(run)
    sets = [_images_like(model.vqvae.config, str(path)).images for path in paths]
    originals = torch.cat([torch.from_numpy(images.copy()) for images in sets])[:SHOWN]
    _announce(model, f"reconstruct {len(originals)} images")
    restored = model.reconstruct(originals, levels)
    columns = min(previews.COLUMNS, len(originals))
    picture = previews.interleaved(originals.numpy(), restored.numpy(), columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.grid(picture, columns).save(out)
    error = max(1e-12, float((originals.double() - restored.double()).div(255).square().mean()))
    _print(
        f"wrote {out}: {len(originals)} images, each above its reconstruction; PSNR {-10 * math.log10(error):.2f} dB"
    )


def score(paths: tuple[Path, ...], run: Path | None, label: str | None, out: Path, as_json: bool) -> None:
    """What is unusual among images: a table, and a picture of where."""
    _refuse_existing(out)
    _check_is_picture(out)
    folder = find_run(run, "samples")
    check_drawable(folder)
    model = load_model(folder.path, device=processes.start().device)
    sets = [_images_like(model.vqvae.config, str(path)) for path in paths]
    names = [name for path, images in zip(paths, sets, strict=True) for name in _file_names(path, images)]
    originals = torch.cat([torch.from_numpy(images.images.copy()) for images in sets])
    _announce(model, f"score {len(originals):,} images")
    scores = score_images(model, originals, label, _reporter())
    order = scores.order()
    for index in order:
        row = {"bits": round(float(scores.bits[index]), 2)}
        row |= {} if scores.bits_per_dim is None else {"bits_per_dim": round(float(scores.bits_per_dim[index]), 4)}
        _print(json.dumps({**row, "image": names[index]}) if as_json else _line(row, names[index]))
    shown = order[: 2 * previews.COLUMNS]
    columns = min(previews.COLUMNS, len(shown))
    picture = previews.interleaved(originals[shown].numpy(), surprise_shown(scores, originals, shown), columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.grid(picture, columns).save(out)
    _reporter().say(f"wrote {out}: the {len(shown)} most unusual, each above where its codes surprise")


def _line(row: dict[str, float], name: str) -> str:
    return "  ".join([*(f"{value:>10,.2f} {unit}" for unit, value in row.items()), name])


def _file_names(path: Path, images: ImageSet) -> list[str]:
    """How to call the images of a path: the file itself, or what lies in the folder or archive, or by number."""
    if path.suffix.lower() in SUFFIXES:
        return [str(path)]
    numbers = map(str, range(len(images.images)))
    return [f"{path}/{name}" for name in (images.names or numbers)]


def complete(
    image: Path, run: Path | None, keep: str | None, mask: Path | None, out: Path, options: dict[str, Any]
) -> None:
    """The original, what is kept of it, and completions, in one picture."""
    _refuse_existing(out)
    _check_is_picture(out)
    if (keep is None) == (mask is None):
        raise UsageError("say what stands: either --keep top:0.5, or --mask MASK.png")
    build([CompleteConfig, Warp], {name: value for name, value in options.items() if name != "label"}, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    config = read_config(folder.vqvae, VQVAERun)
    original = _one_image(image, _images_like(config, str(image)))
    kept = str(keep) if mask is None else _kept_by(mask, image, (config.model.height, config.model.width))
    done = run_completion(folder.path, original.copy(), kept, **options)
    grey = np.where(done.kept, original, 128).astype(np.uint8)
    shown = np.concatenate([np.stack([original, grey]), done.images.numpy()])
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.grid(shown, min(len(shown), 2 + previews.COLUMNS)).save(out)
    _print(f"wrote {out}: the image, what is kept, and {len(done.images)} completions")


def _kept_by(mask: Path, image: Path, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Where a picture is white, cut to size as the image is. Raises UsageError unless both have one shape."""
    for path in (mask, image):
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"a --mask lies over one picture, and {path} is no picture file")
    grey = load_images(DataConfig(data=str(mask), image_size=f"{size[0]}x{size[1]}", colour="grey"))
    (mask_width, mask_height), (width, height) = (pictures.open_image(path.read_bytes()).size for path in (mask, image))
    if (mask_width, mask_height) not in ((width, height), size[::-1]):
        raise UsageError(
            f"{mask} has {mask_width}x{mask_height} pixels and {image} {width}x{height}; a mask lies over its image, "
            f"or has the {size[1]}x{size[0]} that this run sees of it"
        )
    return _one_image(mask, grey)[0] > 127


def _one_image(path: Path, images: ImageSet) -> UInt8[np.ndarray, "c h w"]:
    if len(images.images) != 1:
        raise UsageError(f"{path} holds {len(images.images):,} images; name one of them")
    return images.images[0]


def encode(data: str, run: Path | None, out: Path) -> None:
    """Images to code maps."""
    _refuse_existing(out)
    model = _load_stage1(run)
    images = _images_like(model.vqvae.config, data)
    _announce(model, f"encode {len(images.images):,} images of {data}")
    codes = model.encode(torch.from_numpy(images.images.copy()), _reporter())
    dtype = code_dtype(model.vqvae.config.model)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    maps = CodeMaps(tuple(level.to(dtype) for level in codes), labels)
    save_codes(out, maps, {"vqvae_sha256": model.vqvae.sha256, "fingerprint": images.fingerprint})
    _print(f"wrote {out}: {len(maps):,} code maps, {_sizes(maps)}; back to images: gen decode {out} --out DIR")


def decode(codes: Path, run: Path | None, out: Path) -> None:
    """Code maps to images."""
    _refuse_existing(out)
    model = _load_stage1(run)
    maps = load_codes(codes)
    written_by = load_metadata(codes).get("vqvae_sha256", model.vqvae.sha256)
    if written_by != model.vqvae.sha256:
        raise CheckpointError(
            f"{codes} was written by another vqvae: sha256 {written_by[:12]}, this run has {model.vqvae.sha256[:12]}; "
            "name the run it came from with --run"
        )
    _announce(model, f"decode {len(maps):,} code maps of {codes}")
    Samples(model.decode(maps.levels, _reporter()), maps.levels, maps.labels, (), model.vqvae.sha256).save(out)
    _print(f"wrote {len(maps):,} images into {out}")


def doctor() -> None:
    """What is installed."""
    text, well = report()
    click.echo(text)
    if not well:
        raise UsageError("torch and torchvision do not fit together; install both anew, from the same place")


def info(run: Path | None) -> None:
    """What a run folder holds; its files are verified on the way."""
    folder = find_run(run, "vqvae")
    rows = [("run", str(folder.path))]
    for stage in (folder.vqvae, *sorted(folder.priors.glob("[0-9]"))):
        if is_finished(stage):
            rows += _describe_vqvae(folder) if stage == folder.vqvae else _describe_prior(folder, int(stage.name))
        elif stage.exists():
            unfinished = f"unfinished, {len(list_checkpoints(stage / 'checkpoints'))} checkpoints"
            rows.append((str(stage.relative_to(folder.path)), unfinished))
    if len(rows) == 1:
        raise CheckpointError(f"{folder.path} holds no run: neither {folder.vqvae.name} nor {folder.priors.name}")
    samples = sorted(path.name for path in folder.samples.glob("[!.]*"))
    _print(table([*rows, ("samples", ", ".join(samples) or "none")]))


def _describe_vqvae(folder: RunFolder) -> list[tuple[str, str]]:
    loaded = load_vqvae(folder)
    model, training = loaded.config.model, loaded.config.training
    return [
        (
            "vqvae",
            f"{training.steps:,} steps of {training.batch_size} images, sha256 {loaded.sha256[:12]}, verified",
        ),
        ("  data", f"{loaded.config.data.data}, {len(loaded.config.class_names)} classes"),
        ("  images", f"{model.channels} x {model.height} x {model.width}"),
        ("  codes", codes_in_words(model)),
        *health.rows(read_json(folder.vqvae / EVALUATION)),
    ]


def _describe_prior(folder: RunFolder, level: int) -> list[tuple[str, str]]:
    loaded = load_prior(folder, level, load_vqvae(folder).sha256)
    training, held_out = loaded.config.training, read_json(folder.prior(level) / EVALUATION)
    steps = f"{held_out.get('steps_done', training.steps):,}"
    return [
        (
            f"prior/{level}",
            f"{type(loaded.model).__name__}, {steps} steps of {training.batch_size} maps, verified",
        ),
        ("  held out", brief(held_out)),
    ]


def _announce(model: Model, task: str) -> None:
    config = model.vqvae.config.model
    images = f"{config.channels} x {config.height} x {config.width}"
    facts = [("task", task), ("device", str(model.device)), ("images", images), ("codes", codes_in_words(config))]
    _reporter().say(table(facts))


def _load_stage1(run: Path | None) -> Model:
    device = processes.start().device
    return Model(load_vqvae(find_run(run, "vqvae"), device), ())


def _images_like(config: VQVAERun, data: str) -> ImageSet:
    """Images made as stage 1 takes them."""
    size = f"{config.model.height}x{config.model.width}"
    colour: pictures.Colour = "grey" if config.model.channels == 1 else "colour"
    return load_images(DataConfig(data=data, image_size=size, colour=colour))


def _refuse_existing(path: Path, remedy: str = "choose another --out") -> None:
    if path.exists():
        raise UsageError(f"{path} exists already; {remedy}")


def _check_is_picture(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out} is no picture's name; end it in .png")


def _sizes(maps: CodeMaps) -> str:
    return " + ".join(f"{level.shape[-2]} x {level.shape[-1]}" for level in maps.levels)
