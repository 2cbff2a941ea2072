"""Train stage 1 with several bottlenecks, all else being equal, and lay what they reach side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline import images as pictures
from pipeline import processes
from pipeline.checkpoint import EVALUATION, IN_PROGRESS, is_finished
from pipeline.continuing import AUTO
from pipeline.data import ARRAY, pixel_variance, split
from pipeline.errors import UsageError
from pipeline.fidelity import Fidelity, fidelity, principal_components
from pipeline.generate import generate
from pipeline.launch import Launch
from pipeline.model import Model
from pipeline.options import contradictions, flatten
from pipeline.reporting import Reporter, Silent
from pipeline.run import RunFolder, VQVAERun, can_be_drawn, load_vqvae, read_config
from pipeline.stage1 import Options, check_unchanged, load, new_options, train_vqvae
from pipeline.storage import atomic_file, read_json, write_json
from stage1_vqvae import VQVAEConfig
from stage1_vqvae.bottlenecks import BOTTLENECKS
from stage1_vqvae.config import REGULARISED, belongs

DEFAULT = ("none", "gaussian", "gumbel", "vq", "fsq")
_SHOWN = 12  # images of each row of the picture
_FITTED = 20_000  # images, at most, that principal components are fitted to
_TEXT = 112  # pixels for a row's name
_NOTE = """
On held-out images. PCA, N: N principal components of the training images. Numbers are those an image becomes: integers,
of which each costs its bits, or floats. The bits of gaussian are the KL divergence of its noisy codes, while its error
is that of their means. NMSE is the squared error over the variance of all pixels (1: a constant grey), of images as
bytes, so that values beyond black and white do not count. In use: codes that occur, or floats whose variance exceeds
0.01.
"""


@dataclass(frozen=True)
class Row:
    """What one bottleneck reaches on the held-out images, passing so many numbers an image on, floats or integers."""

    name: str
    numbers: int
    nmse: float
    psnr: float
    ssim: float | None
    bits_an_image: float | None = None
    code_use: float | None = None
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
    rows: list[Row]
    strips: list[Strip]


def compare(
    *,
    out: str | Path,
    bottlenecks: Sequence[str] = DEFAULT,
    preset: str | None = None,
    config: str | Path | None = None,
    images: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Comparison:
    """Train each bottleneck into OUT/NAME, unless it is there; write OUT/compare.md, compare.json and compare.png.

    `options` are those of train_vqvae but for the bottleneck. Principal components stand beside them, as many as a
    bottleneck passes numbers on. The same call goes on after an interruption. Raises GenError.
    """
    options |= {} if images is None else {"data": ARRAY}
    wanted = _wanted(bottlenecks, preset, config, options)
    folder, reporter = Path(out), reporter or Silent()
    launch = Launch(options, processes.start(), reporter, None)
    source: dict[str, Any] = {"images": images, "targets": targets, "data": options.get("data")}
    for name, asked in wanted.items():
        run = RunFolder(folder / name)
        begun = (run.vqvae / IN_PROGRESS).exists()
        launch.accelerator.wait_for_everyone()  # all have looked before any writes
        if begun:
            _check_same(run, asked)
        if not is_finished(run.vqvae):
            reporter.say(f"--- {name}")
            how = {"resume": AUTO} if begun else {"preset": preset, "config": config, **_given(name, options)}
            train_vqvae(out=run.path, reporter=reporter, **{**source, **how})
    comparison = _measure(folder, bottlenecks, images, targets, launch)
    processes.on_main(launch.accelerator, lambda: _write(comparison))
    return comparison


def _wanted(
    bottlenecks: Sequence[str], preset: str | None, config: str | Path | None, options: dict[str, Any]
) -> dict[str, Options]:
    """What each run is to be made with. Raises UsageError with all that is wrong, before any of them starts."""
    problems: dict[str, None] = {}
    if not bottlenecks or len(set(bottlenecks)) < len(bottlenecks) or not set(bottlenecks) <= BOTTLENECKS.keys():
        known, asked = ", ".join(BOTTLENECKS), ", ".join(bottlenecks)
        problems[f"--bottlenecks takes different ones of {known}; got {asked}"] = None
    if (options.get("levels") or 1) > 1:
        problems[f"--levels {options['levels']} cannot be compared: continuous bottlenecks have one"] = None
    wanted = {}
    for name in [name for name in bottlenecks if name in BOTTLENECKS]:
        try:
            wanted[name] = new_options(_given(name, options), preset, config)
        except UsageError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise UsageError("\n".join(problems))
    return wanted


def _given(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that mean something to this bottleneck."""
    return {
        option: value
        for option, value in {**options, "bottleneck": name}.items()
        if value is not None and belongs(option, name) and not (option == "patience" and name in REGULARISED)
    }


def _check_same(run: RunFolder, asked: Options) -> None:
    """Raise UsageError when a run, finished or not, was begun with other options than those asked for."""
    saved = read_config(run.vqvae, VQVAERun, IN_PROGRESS)
    settled = ["data", "memory_gib", "precision", "micro_batches"]  # by the machine, at the start
    settled += ["steps"] if asked.training.max_minutes else []
    differing = contradictions(flatten(*asked), flatten(saved.data, saved.model, saved.training), free=settled)
    if differing:
        raise UsageError("\n".join([*differing, f"({run.path}); choose another --out"]))


def _measure(
    folder: Path,
    bottlenecks: Sequence[str],
    images: np.ndarray | None,
    targets: np.ndarray | None,
    launch: Launch,
) -> Comparison:
    runs = {name: RunFolder(folder / name) for name in bottlenecks}
    models = {name: Model(load_vqvae(run, launch.accelerator.device), ()) for name, run in runs.items()}
    first = models[bottlenecks[0]].vqvae.config
    image_set = load(first.data, images, targets, launch)
    for name, run in runs.items():
        check_unchanged(run, models[name].vqvae.config, image_set)
    parts = split(len(image_set.images), first.data.held_out, first.training.seed)
    held_out = image_set.images[parts.held_out]
    variance = pixel_variance(image_set.images, parts.train)
    shown = _spread(len(held_out), _SHOWN)
    result = Comparison(folder, [], [Strip("images", held_out[shown])])

    def add(row: Row, restored: UInt8[np.ndarray, "n c h w"]) -> None:
        result.rows.append(row)
        result.strips.append(Strip(row.name, restored[shown]))

    fitted = image_set.images[parts.train[_spread(len(parts.train), _FITTED)]]
    for numbers in sorted({_numbers(model.vqvae.config.model) for model in models.values()}):
        launch.reporter.say(f"fitting {numbers} principal components")
        linear = principal_components(fitted, held_out, numbers)
        if linear is None:
            launch.reporter.say(f"left out: there are not {numbers} components of the images that fit into memory")
        else:
            add(Row(f"PCA, {numbers}", numbers, **fidelity(held_out, linear, variance)._asdict()), linear)
    for name, model in models.items():
        restored = model.reconstruct(torch.from_numpy(held_out.copy())).numpy()
        add(_row(name, runs[name], fidelity(held_out, restored, variance)), restored)
    for name, run in runs.items():
        if can_be_drawn(run):
            result.strips.append(Strip(f"{name}, drawn", generate(run.path, _SHOWN).images.numpy()))
    return result


def _spread(population: int, most: int) -> Int[np.ndarray, "m"]:
    """Indices evenly over a population: sorted folders have their classes one after another."""
    return np.linspace(0, population - 1, min(population, most)).round().astype(int)


def _numbers(config: VQVAEConfig) -> int:
    (rows, columns), *_ = config.grids
    return rows * columns * (1 if config.is_discrete else config.code_dim)


def _row(name: str, run: RunFolder, reached: Fidelity) -> Row:
    config, measured = read_config(run.vqvae, VQVAERun), read_json(run.vqvae / EVALUATION)
    health: dict[str, Any] = {
        key: measured.get(key) for key in ("bits_an_image", "code_use", "active_units", "perplexity")
    }
    lines = [json.loads(line) for line in (run.vqvae / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return Row(
        name,
        _numbers(config.model),
        **reached._asdict(),
        **health,
        images_per_second=median(speeds),
        steps=config.training.steps,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    titles = ("bottleneck", "numbers", "bits an image", "NMSE", "PSNR, dB", "SSIM", "in use", "images/s", "steps")
    lines = [titles, ("---",) * len(titles), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + _NOTE


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    used = "" if row.code_use is None else f"{row.code_use:.1%} of codes, perplexity {row.perplexity:.0f}"
    active = "" if row.active_units is None else f"{row.active_units:.1%} of units"
    fidelity = (f"{row.nmse:.4f}", f"{row.psnr:.2f}", shown(row.ssim, ".3f"))
    speed = (shown(row.images_per_second, ",.0f"), shown(row.steps, ","))
    return (row.name, str(row.numbers), shown(row.bits_an_image, ",.0f"), *fidelity, used + active, *speed)


def _picture(strips: Sequence[Strip]) -> Image.Image:
    """Each row's name, and its images, enlarged where they are small."""
    factor = max(1, 48 // strips[0].images.shape[-1])
    rows = [pictures.grid(strip.images, _SHOWN).convert("RGB") for strip in strips]
    enlarged = [row.resize((factor * row.width, factor * row.height), pictures.NEAREST) for row in rows]
    canvas = Image.new("RGB", (_TEXT + enlarged[0].width, sum(row.height for row in enlarged)), "white")
    pen, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(13), 0
    for strip, row in zip(strips, enlarged, strict=True):
        canvas.paste(row, (_TEXT, top))
        pen.text((4, top + row.height // 2), strip.name, "black", font, anchor="lm")
        top += row.height
    return canvas


def _write(comparison: Comparison) -> None:
    folder = comparison.folder
    with atomic_file(folder / "compare.md") as unfinished:
        unfinished.write_text(markdown(comparison.rows))
    write_json(folder / "compare.json", {"rows": [asdict(row) for row in comparison.rows]})
    with atomic_file(folder / "compare.png") as unfinished:
        _picture(comparison.strips).save(unfinished, format="png")
