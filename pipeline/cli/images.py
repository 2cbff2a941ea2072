"""`gen reconstruct`, `gen score`, `gen interpolate`, `gen nearest`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import click
import numpy as np
import torch
from jaxtyping import UInt8

from pipeline.cli.flags import (
    check_is_new,
    check_out_is_new_picture,
    decoder_option,
    device_option,
    flags,
    quiet_option,
    run_option,
    save_grid,
    say_result,
)
from pipeline.cli.inputs import images_like, images_of_paths, in_batches, single_image
from pipeline.config.arguments import InterpolateArguments, NearestArguments
from pipeline.config.evaluation import NearestConfig
from pipeline.config.sampling import DecoderName, InterpolateConfig
from pipeline.data import pixels
from pipeline.data.pictures import COLUMNS, interleaved
from pipeline.errors import UsageError
from pipeline.evaluation.nearest import nearest
from pipeline.evaluation.score import score, surprise_shown
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter, reporter_for_command, table
from pipeline.runs.saved import codes_in_words, images_in_words
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.motion.film import write_film
from pipeline.sampling.motion.interpolate import interpolate
from stage1_vqvae.noise import add_own_noise

_ROWS = 64  # of a picture: images whose nearest ones are shown

images_argument = click.argument("paths", nargs=-1, required=True, metavar="IMAGES...", type=click.Path(path_type=Path))


@click.command("reconstruct")
@images_argument
@run_option
@device_option
@decoder_option
@click.option("--out", type=click.Path(path_type=Path), default="reconstructions.png", show_default=True)
@click.option("--levels", type=click.IntRange(1), help="Of several levels of codes the first ones only.")
@click.option(
    "--noise",
    type=click.FloatRange(0, 1, min_open=True),
    help="Reconstruct noisy images, and show them too: standard deviation of the noise, of pixels on [0, 1].",
)
@click.option("--n", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Images in the picture.")
@click.option("--random", "at_random", is_flag=True, help="Images drawn at random in place of the first.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of --random [default: 0].")
@quiet_option
def reconstruct_command(
    paths: tuple[Path, ...],
    run: Path | None,
    device: str | None,
    decoder: DecoderName | None,
    out: Path,
    levels: int | None,
    noise: float | None,
    n: int,
    at_random: bool,
    seed: int | None,
    quiet: bool,
) -> None:
    """Show images (files, folders or .zips) above what their codes keep of them.

    The PSNR is that of all images given, also of those that the picture does not show. With --noise the codes are those
    of noisy images, which stand between; the noise of an image is always the same, as in the validation of a training
    with --denoise.
    """
    check_out_is_new_picture(out)
    if seed is not None and not at_random:
        raise UsageError(f"--seed {seed} says which images --random draws; add --random, or leave it out")
    model = loaded(run, "vqvae", device, decoder=decoder)
    model.check_levels(levels)
    parts = images_of_paths(model.vqvae.config, paths)[0]
    total = sum(map(len, parts))
    reporter = reporter_for_command(quiet)
    announce(reporter, model, f"reconstruct {total:,} images")
    drawn = stream(seed or 0, Purpose.SHOWN).choice(total, min(n, total), replace=False) if at_random else range(n)
    done = _reconstruct(model, parts, levels, noise or 0.0, {int(index) for index in drawn}, reporter)
    shown = len(done.originals)
    columns = min(COLUMNS, shown)
    rows = (done.originals, done.noisy, done.restored) if noise else (done.originals, done.restored)
    save_grid(out, interleaved(*rows, columns=columns), columns)
    those = (
        f"{shown}" if shown == total else f"{shown} of {total:,}" if at_random else f"the first {shown} of {total:,}"
    )
    below = "the same with noise and the reconstruction of that" if noise else "its reconstruction"
    psnr = f"{done.psnr:.2f} dB" + (f", of the noisy images {done.noisy_psnr:.2f} dB," if noise else "")
    say_result(f"wrote {out}: {those} images, each above {below}; PSNR {psnr} over all {total:,} given")


class _Reconstructed(NamedTuple):
    """Images to be shown, what the encoder saw of them and their reconstructions, uint8 (n, c, h, w); and the PSNR (dB)
    of the latter two over all images."""

    originals: UInt8[np.ndarray, "n c h w"]
    noisy: UInt8[np.ndarray, "n c h w"]
    restored: UInt8[np.ndarray, "n c h w"]
    noisy_psnr: float
    psnr: float


def _reconstruct(
    model: Model,
    parts: Sequence[UInt8[np.ndarray, "_ c h w"]],
    levels: int | None,
    noise: float,
    shown: set[int],
    reporter: Reporter,
) -> _Reconstructed:
    """Reconstruct all images, with `noise` added to them, a batch at a time, and keep those at the indices `shown`."""
    size, total = model.images_at_a_time, sum(map(len, parts))
    batches, kept, errors = in_batches(parts, size), [], np.zeros(2)
    for step in reporter.steps(range(-(-total // size)), "reconstruct"):
        originals = next(batches)
        noisy = add_own_noise(torch.from_numpy(originals), noise).numpy()
        restored = model.reconstruct(noisy, levels).numpy()
        errors += [np.square(originals.astype(np.float64) - other).sum() for other in (noisy, restored)]
        kept += [(originals[i], noisy[i], restored[i]) for i in range(len(originals)) if step * size + i in shown]
    means = errors / (total * model.vqvae.config.model.values * 255**2)
    noisy_psnr, psnr = (-10 * math.log10(max(1e-12, mean)) for mean in means)
    first, second, third = (np.stack(images) for images in zip(*kept, strict=True))
    return _Reconstructed(first, second, third, noisy_psnr, psnr)


@click.command("score")
@images_argument
@run_option
@device_option
@decoder_option
@click.option("--class", "label", metavar="CLASS", help="What the images show [default: any class, in proportion].")
@click.option("--out", type=click.Path(path_type=Path), default="surprise.png", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image in place of the table.")
@quiet_option
def score_command(
    paths: tuple[Path, ...],
    run: Path | None,
    device: str | None,
    decoder: DecoderName | None,
    label: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say how many bits the prior needs for the codes of images (files, folders or .zips), the most unusual first.

    The picture shows the most unusual ones above where they surprise. What stage 1 does not keep of an image is not
    seen: compare with `gen reconstruct`.
    """
    check_out_is_new_picture(out)
    reporter = reporter_for_command(quiet)
    model = loaded(run, "samples", device, decoder=decoder)
    parts, names = images_of_paths(model.vqvae.config, paths)
    originals = parts[0] if len(parts) == 1 else np.concatenate(parts)
    del parts
    announce(reporter, model, f"score {len(originals):,} images")
    scores = score(model, originals, label=label, reporter=reporter)
    order = scores.order()
    shown = order[: 2 * COLUMNS]
    width = min(COLUMNS, len(shown))
    # Before the lines: a reader such as `head` may leave among them.
    save_grid(out, interleaved(originals[shown], surprise_shown(scores, originals, shown), columns=width), width)
    for index in order:
        row = {"bits": round(float(scores.bits[index]), 2)}
        if scores.bits_per_dim is not None:
            row["bits_per_dim"] = round(float(scores.bits_per_dim[index]), 4)
        columns = [f"{value:>10,.2f} {unit}" for unit, value in row.items()]
        as_text = json.dumps({**row, "image": names[index]})
        say_result(as_text if as_json else "  ".join([*columns, names[index]]))
    reporter.say(f"wrote {out}: the {len(shown)} most unusual, each above where its codes surprise")


@click.command("interpolate")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@run_option
@flags(InterpolateConfig)
@device_option
@decoder_option
@click.option("--out", type=click.Path(path_type=Path), default="between.png", show_default=True)
def interpolate_command(
    first: Path,
    second: Path,
    run: Path | None,
    device: str | None,
    decoder: DecoderName | None,
    out: Path,
    **options: Unpack[InterpolateArguments],
) -> None:
    """Show what lies between two images, from the reconstruction of the first to that of the second.

    The first row mixes what the decoder is given. Where codes are integers, a second row replaces those of the first
    image by those of the second, in raster order, and a third has the codes that are nearest to mixtures of what the
    encoder gives. A .gif or .webp shows the first row as a film, there and back.
    """
    is_film = out.suffix.lower() in (".gif", ".webp")
    check_is_new(out) if is_film else check_out_is_new_picture(out)
    model = loaded(run, "vqvae", device, decoder=decoder)
    ends = [single_image(path, images_like(model.vqvae.config, str(path))).copy() for path in (first, second)]
    done = interpolate(model, *ends, **options)
    if is_film:
        there = [pixels.grid(image[None], 1) for image in done.mixed]
        write_film(out, [*there, *there[-2:0:-1]])
    else:
        rows = np.concatenate([row for row in done if row is not None])
        save_grid(out, rows, len(done.mixed))
    say_result(f"wrote {out}: {len(done.mixed)} images from {first} to {second}")


@click.command("nearest")
@images_argument
@run_option
@flags(NearestConfig)
@click.option("--data", help="Where the run's images are now [default: where they were].")
@device_option
@click.option("--out", type=click.Path(path_type=Path), default="nearest.png", show_default=True)
@quiet_option
def nearest_command(
    paths: tuple[Path, ...],
    run: Path | None,
    data: str | None,
    device: str | None,
    out: Path,
    quiet: bool,
    **options: Unpack[NearestArguments],
) -> None:
    """Find the images of a run that are nearest to others (files, folders or .zips) by their codes.

    A line each gives their distances and names, and the picture shows each image given before them. The run's test part
    is not looked through.
    """
    check_out_is_new_picture(out)
    model = loaded(run, "vqvae", device)
    parts, names = images_of_paths(model.vqvae.config, paths)
    given = parts[0] if len(parts) == 1 else np.concatenate(parts)
    reporter = reporter_for_command(quiet)
    announce(reporter, model, f"find what is nearest to {len(given):,} images")
    found = nearest(model, given, data=data, reporter=reporter, **options)
    shown = min(len(given), _ROWS)
    rows = [np.concatenate([given[index : index + 1], found.images(index)]) for index in range(shown)]
    save_grid(out, np.concatenate(rows), len(rows[0]))
    for index, name in enumerate(names):
        near = zip(found.distances[index], found.names(index), strict=True)
        say_result("\n".join([f"{name}:", *(f"{distance:10.3f}  {other}" for distance, other in near)]))
    reporter.say(f"wrote {out}: {shown:,} of {len(given):,} images, each before those nearest to it, the nearest first")


def announce(reporter: Reporter, model: Model, task: str) -> None:
    """Say what a command is about to do, and with what."""
    config = model.vqvae.config.model
    facts = [
        ("task", task),
        ("run", model.run.called),
        ("device", str(model.device)),
        ("images", f"{images_in_words(config)}, {model.run.decoder} decoder"),
        ("codes", codes_in_words(config)),
    ]
    reporter.say(table(facts))


COMMANDS = (reconstruct_command, score_command, interpolate_command, nearest_command)
