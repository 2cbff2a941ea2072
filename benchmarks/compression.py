"""Rate and distortion: codes under a prior, beside JPEG, WebP, AVIF and PNG of the same images at the same size.

    python -m benchmarks.compression RUN... [--n 2000] [--picture curves.png]

Runs are of one data set, with a test part. Prints a JSON line for each run, decoder and number of levels, and for each
format and quality: bytes an image (of ours the whole file without names, and of it the codes; of the others one file
an image, the same less the bytes of a file of a flat picture, which are its header, and one mosaic of all), PSNR (dB,
of the mean squared error of all), and the Fréchet distance by the judge to validation images, beside that of the
originals. Of a run also the bytes of its models, after how many images these pay beside a mosaic in WebP of the same
PSNR, what codes took over what `gen score` says they cost, codes that came back wrong, and images a second both ways.
"""

import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, get_args

import click
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline import Model, compress, decompress, load, score
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.sampling import DecoderName
from pipeline.data import pixels
from pipeline.errors import CheckpointError, UsageError
from pipeline.evaluation.parts import Source, read_parts
from pipeline.evaluation.yardstick import Yardstick, yardstick_of
from pipeline.processes import start
from pipeline.reporting import Silent
from pipeline.runs.layout import WEIGHTS
from pipeline.training.launch import Launch

QUALITIES = {"jpeg": (5, 10, 20, 40, 75), "webp": (1, 10, 30, 60, 90), "avif": (10, 25, 40, 60, 80), "png": (None,)}


class Point(NamedTuple):
    """What images cost, in bytes an image, and what is left of them."""

    file: float
    without_header: float
    mosaic: float | None
    mosaic_psnr: float | None
    psnr: float
    distance: float


class Coding(NamedTuple):
    """How codes were written: their bytes over the bits that `gen score` says, blocks that stand as they are,
    codes that came back wrong, and images a second both ways."""

    payload_over_bits: float
    raw_blocks: int
    wrong_codes: int
    compressed_a_second: float
    decompressed_a_second: float


def psnr(originals: UInt8[np.ndarray, "n c h w"], decoded: UInt8[np.ndarray, "n c h w"]) -> float:
    """Of the mean squared error over all images, in dB; without an error, infinite."""
    error = np.square(originals.astype(np.float64) - decoded).mean()
    return math.inf if error == 0 else float(20 * math.log10(255) - 10 * math.log10(error))


def encoded(image: Image.Image, name: str, quality: int | None) -> bytes:
    """The file of a picture."""
    content = io.BytesIO()
    effort = {"webp": {"method": 6}, "avif": {"speed": 4}}.get(name, {"optimize": True})
    asked = {} if quality is None else {"quality": quality}
    image.save(content, format=name, **asked, **effort)
    return content.getvalue()


def decoded(content: bytes, channels: int) -> UInt8[np.ndarray, "c h w"]:
    """The pixels of a file."""
    array = np.asarray(Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB"))
    return array[None] if channels == 1 else np.moveaxis(array, 2, 0)


def of_format(images: UInt8[np.ndarray, "n c h w"], name: str, quality: int | None, yardstick: Yardstick) -> Point:
    """One file an image, and all in one."""
    n, channels, height, width = images.shape
    contents = [encoded(pixels.to_pil(image), name, quality) for image in images]
    back = np.stack([decoded(content, channels) for content in contents])
    flat = pixels.to_pil(np.full((channels, height, width), 128, np.uint8))
    file, columns = sum(map(len, contents)) / n, math.isqrt(n)
    tiles = images[: columns * (n // columns)].reshape(-1, columns, channels, height, width)
    mosaic = tiles.transpose(2, 0, 3, 1, 4).reshape(channels, len(tiles) * height, columns * width)
    whole = encoded(pixels.to_pil(np.ascontiguousarray(mosaic)), name, quality)
    return Point(
        file,
        file - len(encoded(flat, name, quality)),
        len(whole) / (len(tiles) * columns),
        psnr(mosaic[None], decoded(whole, channels)[None]),
        psnr(images, back),
        distance(yardstick, back),
    )


def distance(yardstick: Yardstick, images: UInt8[np.ndarray, "n c h w"]) -> float:
    """Fréchet distance to the validation images."""
    return yardstick.compared(images, None, "validation")["frechet_distance"].value


def of_run(
    model: Model, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray | None, levels: int, yardstick: Yardstick
) -> tuple[Point, Coding]:
    """One file of all."""
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder) / "images.genz", perf_counter()
        done, compressed = compress(model, images, path, labels=labels, levels=levels), perf_counter()
        samples, ended = decompress(path, model).samples, perf_counter()
    n, back = len(images), samples.images.numpy()
    wrong = sum(int((a != b).sum()) for a, b in zip(samples.codes, model.encode(images)[:levels], strict=True))
    coding = Coding(
        8 * done.payload_bytes / bits_said(model, images, labels, levels),
        done.raw_blocks,
        wrong,
        n / (compressed - began),
        n / (ended - compressed),
    )
    return Point(
        done.bytes / n, done.payload_bytes / n, None, None, psnr(images, back), distance(yardstick, back)
    ), coding


def bits_said(model: Model, images: UInt8[np.ndarray, "n c h w"], labels: np.ndarray | None, levels: int) -> float:
    """What the codes of these levels cost by `gen score` under the class of each image, and the classes by their
    frequency; where classes are not known, under the mixture of them."""
    if labels is None:
        return sum(float(level.sum()) for level in score(model, images).surprise[:levels])
    weights = np.array(model.priors[0].config.class_weights)
    bits = -float(np.log2(weights / weights.sum())[labels].sum())
    for label in np.unique(labels):
        surprise = score(model, images[labels == label], label=int(label)).surprise
        bits += sum(float(level.sum()) for level in surprise[:levels])
    return bits


def models_of(run: Path) -> Iterator[tuple[DecoderName, int, Model]]:
    """Each decoder of a run with all levels, and the first one with the coarsest alone."""
    for decoder in get_args(DecoderName):
        try:
            model = load(run, decoder=decoder)
        except (CheckpointError, UsageError):
            continue  # no such decoder
        yield from ((decoder, levels, model) for levels in range(1, len(model.priors) + 1))


def bytes_of_models(model: Model, levels: int) -> int:
    """The weights that both ends must have."""
    folder = model.run.folder
    return sum(
        path.stat().st_size for path in (folder.vqvae / WEIGHTS, *(folder.prior(i) / WEIGHTS for i in range(levels)))
    )


def images_to_pay(ours: Point, model_bytes: int, theirs: Sequence[Point]) -> float | None:
    """How many images outweigh the models, beside a mosaic of the same PSNR; None for none."""
    known = sorted((point.mosaic_psnr or 0, math.log(point.mosaic or 1)) for point in theirs)
    if not known[0][0] <= ours.psnr <= known[-1][0]:
        return None
    cost = math.exp(float(np.interp(ours.psnr, [one for one, _ in known], [one for _, one in known])))
    return model_bytes / (cost - ours.file) if cost > ours.file else None


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--n", default=2000, help="Test images.")
@click.option("--picture", type=click.Path(path_type=Path), help="Curves of all this.")
def main(runs: tuple[Path, ...], n: int, picture: Path | None) -> None:
    """Print rate and distortion of runs and of formats."""
    first = load(runs[0])
    parts = read_parts(first.run, Source(None, None, None, None), n, Launch({}, start(), Silent(), None))
    config = EvaluateConfig(n=n)
    yardstick = yardstick_of(parts, config, flip=False, device=first.device, reporter=Silent())
    images, labels = yardstick.real["test"]
    print(json.dumps({"originals": len(images), "distance": distance(yardstick, images)}), flush=True)
    points: dict[str, list[Point]] = {}
    for name, qualities in QUALITIES.items():
        for quality in qualities:
            point = of_format(images, name, quality, yardstick)
            points.setdefault(name, []).append(point)
            print(json.dumps({"format": name, "quality": quality, **point._asdict()}), flush=True)
    for run in runs:
        for decoder, levels, model in models_of(run):
            point, coding = of_run(model, images, labels, levels, yardstick)
            size = bytes_of_models(model, levels)
            points.setdefault(f"gen, {run.name}, {decoder}", []).append(point)
            facts = {
                "run": run.name,
                "decoder": decoder,
                "levels": levels,
                **point._asdict(),
                **coding._asdict(),
                "model_bytes": size,
            }
            print(json.dumps({**facts, "images_to_pay": images_to_pay(point, size, points["webp"])}), flush=True)
    if picture is not None:
        draw(points, images[0].size // len(images[0]), picture)


def draw(points: dict[str, list[Point]], pixels_an_image: int, path: Path) -> None:
    """Two panels over bits a pixel, of formats in a mosaic: its PSNR, and the Fréchet distance of single files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("psnr", "distance"), strict=True):
        for label, curve in points.items():
            ours = label.startswith("gen")
            rates = [8 * (point.file if ours else point.mosaic or 0) / pixels_an_image for point in curve]
            values = [(point.mosaic_psnr or point.psnr) if name == "psnr" else point.distance for point in curve]
            axes.plot(rates, values, marker="o", linestyle="none" if ours else "-", label=label)
        axes.set(
            xscale="log",
            xlabel="bits a pixel (formats: one mosaic)",
            ylabel={"psnr": "PSNR, dB"}.get(name, "Fréchet distance"),
        )
        if name == "distance":
            axes.set_yscale("log")
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
