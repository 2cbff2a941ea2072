"""Train stage 1 with several bottlenecks, all else being equal, and lay what they reach side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple, Unpack, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline import processes
from pipeline.config.arguments import CompareArguments, VQVAEArguments
from pipeline.config.options import Options, contradictions, flatten, given
from pipeline.config.presets import PresetName
from pipeline.data import pixels
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_test_images, test_files_fingerprint
from pipeline.data.pictures import evenly_spread
from pipeline.data.splits import Split, load_split, pixel_variance
from pipeline.errors import DataError, UsageError
from pipeline.evaluation.measures.fidelity import Fidelity, fidelity, principal_components
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.layout import IN_PROGRESS, METRICS, SPLIT, RunFolder, is_finished
from pipeline.runs.saved import VQVAERun, read_config
from pipeline.runs.validation import read_validation
from pipeline.sampling.generate import generate
from pipeline.sampling.model import Model, load
from pipeline.storage import atomic_file, check_paths, write_json
from pipeline.training.inputs.images import check_unchanged, load_image_set
from pipeline.training.launch import Launch
from pipeline.training.resume import AUTO
from pipeline.training.stage1 import StageOptions, asked_options, new_options, train_vqvae
from stage1_vqvae import VQVAEConfig
from stage1_vqvae.bottlenecks import BOTTLENECKS
from stage1_vqvae.config import REGULARISED, applies_to

DEFAULT = ("none", "gaussian", "gumbel", "vq", "fsq")
_SHOWN = 12  # images of each row of the picture
_FITTED = 20_000  # images, at most, that principal components are fitted to
_TEXT = 112  # pixels for a row's name
_NOTE = """
On {part} images. PCA, N: N principal components of the training images. Numbers are those an image becomes: integers,
of which each costs its bits, or floats. The bits of gaussian are the KL divergence of its noisy codes, while its error
is that of their means. NMSE is the squared error over the variance of all pixels (1: a constant grey), of images as
bytes, so that values beyond black and white do not count. In use: codes that occur, or floats whose variance exceeds
0.01.
"""


@dataclass(frozen=True)
class Row:
    """What one bottleneck reaches on the measured images, passing so many numbers per image on, floats or integers."""

    name: str
    numbers: int
    nmse: float
    psnr: float
    ssim: float | None
    bits_per_image: float | None = None
    codebook_usage: float | None = None
    active_units: float | None = None
    perplexity: float | None = None
    images_per_second: float | None = None
    steps: int | None = None


class Strip(NamedTuple):
    """A row of the picture."""

    name: str
    images: UInt8[np.ndarray, "n c h w"]


@dataclass(frozen=True)
class Comparison:
    """The table and the picture, and where they lie."""

    folder: Path
    part: str  # of the data, that it was measured on
    rows: list[Row]
    strips: list[Strip]


def compare(
    *,
    out: str | Path,
    bottlenecks: Sequence[str] = DEFAULT,
    preset: PresetName | None = None,
    config: str | Path | None = None,
    images: np.ndarray | Tensor | None = None,
    targets: np.ndarray | Tensor | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[CompareArguments],
) -> Comparison:
    """Train each bottleneck into OUT/NAME, unless it is there; write OUT/compare.md, compare.json and compare.png.

    Measured on the test part of the data, or where there is none on the validation part. `options` are those of
    train_vqvae but for the bottleneck. Principal components stand beside them, as many as a bottleneck passes numbers
    on. The same call goes on after an interruption. Raises GenError.
    """
    check_paths(out=out, config=config)
    # Some bottlenecks have a sharp training, others none: unless told otherwise they are compared without it.
    asked = {"objective": "nmse"} | asked_options(dict(options), images)
    wanted = _wanted(bottlenecks, preset, config, asked)
    folder, reporter = Path(out), reporter or reporter_for_api()
    launch = Launch(asked, processes.start(), reporter, None)
    for name, stage_options in wanted.items():
        run = RunFolder(folder / name)
        begun = (run.vqvae / IN_PROGRESS).exists()
        launch.accelerator.wait_for_everyone()  # all have looked before any writes
        if begun:
            _check_same(run, stage_options)
        if not is_finished(run.vqvae):
            reporter.say(f"--- {name}")
            source: VQVAEArguments = {"data": options["data"]} if "data" in options and images is None else {}
            own = source if begun else _own_options(name, asked)
            train_vqvae(
                out=run.path,
                resume=AUTO if begun else None,
                preset=None if begun else preset,
                config=None if begun else config,
                images=images,
                targets=targets,
                reporter=reporter,
                **own,
            )
    comparison = _measure(folder, bottlenecks, images, targets, launch)
    processes.on_main(launch.accelerator, lambda: _write(comparison))
    return comparison


def _wanted(
    bottlenecks: Sequence[str], preset: str | None, config: str | Path | None, options: Options
) -> dict[str, StageOptions]:
    """What each run is to be made with. Raises UsageError with all that is wrong, before any of them starts."""
    problems: dict[str, None] = {}
    if not bottlenecks or len(set(bottlenecks)) < len(bottlenecks) or not set(bottlenecks) <= BOTTLENECKS.keys():
        known, asked = ", ".join(BOTTLENECKS), ", ".join(bottlenecks)
        problems[f"--bottlenecks takes different ones of {known}; got {asked}"] = None
    if options.get("levels", 1) != 1:
        problems[f"--levels {options['levels']} cannot be compared: continuous bottlenecks have one"] = None
    wanted = {}
    for name in [name for name in bottlenecks if name in BOTTLENECKS]:
        try:
            wanted[name] = new_options(_own_options(name, options), preset, config)
        except UsageError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise UsageError("\n".join(problems))
    return wanted


def _own_options(name: str, options: Options) -> VQVAEArguments:
    """The options that mean something to this bottleneck."""
    own = {
        option: value
        for option, value in {**options, "bottleneck": name}.items()
        if applies_to(option, name) and not (option == "patience" and name in REGULARISED)
    }
    return cast(VQVAEArguments, own)  # a selection by name, of options that `new_options` has checked


def _check_same(run: RunFolder, asked: StageOptions) -> None:
    """Raise UsageError when a run, finished or not, was begun with other options than those asked for."""
    saved = read_config(run.vqvae, VQVAERun, IN_PROGRESS)
    settled = ["data", "memory_gib", "precision", "micro_batches"]  # by the machine, at the start
    settled += ["steps"] if asked.training.max_minutes else []
    differing = contradictions(given(flatten(*asked)), flatten(saved.data, saved.model, saved.training), free=settled)
    if differing:
        raise UsageError("\n".join([*differing, f"({run.path}); choose another --out"]))


def _measure(
    folder: Path,
    bottlenecks: Sequence[str],
    images: np.ndarray | Tensor | None,
    targets: np.ndarray | Tensor | None,
    launch: Launch,
) -> Comparison:
    models = {name: load(folder / name, device=launch.accelerator.device) for name in bottlenecks}
    first = models[bottlenecks[0]]
    image_set = load_image_set(first.vqvae.config.data, images, targets, launch)
    for model in models.values():
        check_unchanged(model.run.folder, model.vqvae.config, image_set)
    parts = load_split(first.run.folder.vqvae / SPLIT)
    with launch.accelerator.local_main_process_first():
        part, measured = _measured_images(first.vqvae.config, image_set, parts)
    variance = pixel_variance(image_set, parts.train)
    shown = evenly_spread(len(measured), _SHOWN)
    result = Comparison(folder, part, [], [Strip("images", measured[shown])])

    def add(row: Row, restored: UInt8[np.ndarray, "n c h w"]) -> None:
        result.rows.append(row)
        result.strips.append(Strip(row.name, restored[shown]))

    fitted = image_set.images[parts.train[evenly_spread(len(parts.train), _FITTED)]]
    for numbers in sorted({_numbers(model.vqvae.config.model) for model in models.values()}):
        launch.reporter.say(f"fitting {numbers} principal components")
        linear = principal_components(fitted, measured, numbers)
        if linear is None:
            launch.reporter.say(f"left out: there are not {numbers} components of the images that fit into memory")
        else:
            add(Row(f"PCA, {numbers}", numbers, **fidelity(measured, linear, variance)._asdict()), linear)
    for name, model in models.items():
        restored = model.reconstruct(torch.from_numpy(measured.copy())).numpy()
        add(_row(name, model, fidelity(measured, restored, variance)), restored)
    for name, model in models.items():
        if model.run.can_be_sampled:
            result.strips.append(Strip(f"{name}, drawn", generate(model, _SHOWN).images.numpy()))
    return result


def _measured_images(config: VQVAERun, image_set: ImageSet, parts: Split) -> tuple[str, UInt8[np.ndarray, "n c h w"]]:
    """The test part, or the validation part where nothing was set aside for testing; and its name.

    Raises DataError when an official test part has changed.
    """
    if config.data.test_data is not None:
        if test_files_fingerprint(config.data.test_data) != config.test_fingerprint:
            raise DataError(f"the files of {config.data.test_data} are not those that the runs were begun with")
        return "test", load_test_images(config.data, image_set.shape).images
    if len(parts.test):
        return "test", image_set.images[parts.test]
    return "validation", image_set.images[parts.validation]


def _numbers(config: VQVAEConfig) -> int:
    (rows, columns), *_ = config.grids
    return rows * columns * (1 if config.is_discrete else config.dimension)


def _row(name: str, model: Model, reached: Fidelity) -> Row:
    config, stage = model.vqvae.config, model.run.folder.vqvae
    (codes,) = read_validation(stage).metrics.levels
    lines = [json.loads(line) for line in (stage / METRICS).read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return Row(
        name,
        _numbers(config.model),
        **reached._asdict(),
        bits_per_image=codes.get("bits_per_image"),
        codebook_usage=codes.get("codebook_usage"),
        active_units=codes.get("active_units"),
        perplexity=codes.get("perplexity"),
        images_per_second=median(speeds),
        steps=config.training.steps,
    )


def markdown(comparison: Comparison) -> str:
    """The table."""
    titles = ("bottleneck", "numbers", "bits per image", "NMSE", "PSNR, dB", "SSIM", "in use", "images/s", "steps")
    lines = [titles, ("---",) * len(titles), *map(_cells, comparison.rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + _NOTE.format(part=comparison.part)


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    used = "" if row.codebook_usage is None else f"{row.codebook_usage:.1%} of codes, perplexity {row.perplexity:.0f}"
    active = "" if row.active_units is None else f"{row.active_units:.1%} of units"
    fidelity = (f"{row.nmse:.4f}", f"{row.psnr:.2f}", shown(row.ssim, ".3f"))
    speed = (shown(row.images_per_second, ",.0f"), shown(row.steps, ","))
    return (row.name, str(row.numbers), shown(row.bits_per_image, ",.0f"), *fidelity, used + active, *speed)


def _picture(strips: Sequence[Strip]) -> Image.Image:
    """Each row's name, and its images."""
    rows = [pixels.grid(strip.images, _SHOWN).convert("RGB") for strip in strips]
    canvas = Image.new("RGB", (_TEXT + rows[0].width, sum(row.height for row in rows)), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(13), 0
    for strip, row in zip(strips, rows, strict=True):
        canvas.paste(row, (_TEXT, top))
        pen.text((4, top + row.height // 2), strip.name, "black", font, anchor="lm")
        top += row.height
    return canvas


def _write(comparison: Comparison) -> None:
    folder = comparison.folder
    with atomic_file(folder / "compare.md") as unfinished:
        unfinished.write_text(markdown(comparison))
    write_json(folder / "compare.json", {"part": comparison.part, "rows": [asdict(row) for row in comparison.rows]})
    with atomic_file(folder / "compare.png") as unfinished:
        _picture(comparison.strips).save(unfinished, format="png")
