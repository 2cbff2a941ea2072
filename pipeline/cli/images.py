"""`gen reconstruct`, `gen score`, `gen encode`, `gen decode`."""

import json
import math
from pathlib import Path

import click
import torch

from pipeline.cli.flags import (
    check_is_new,
    check_out_is_new_picture,
    device_option,
    quiet_option,
    run_option,
    save_grid,
    say_result,
)
from pipeline.cli.inputs import images_like, images_of_paths
from pipeline.data.code_maps import CodeMaps, code_dtype, load_codes, save_codes
from pipeline.data.pictures import COLUMNS, interleaved
from pipeline.errors import CheckpointError, UsageError
from pipeline.evaluation.score import score, surprise_shown
from pipeline.reporting import Reporter, reporter_for_command, table
from pipeline.runs.saved import codes_in_words, images_in_words
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.samples import Samples
from pipeline.storage import load_metadata

_MOST_SHOWN = 64  # images in a picture of reconstructions

images_argument = click.argument("paths", nargs=-1, required=True, metavar="IMAGES...", type=click.Path(path_type=Path))


@click.command("reconstruct")
@images_argument
@run_option
@device_option
@click.option("--out", type=click.Path(path_type=Path), default="reconstructions.png", show_default=True)
@click.option("--levels", type=click.IntRange(1), help="Of several levels of codes the first ones only.")
@quiet_option
def reconstruct_command(
    paths: tuple[Path, ...], run: Path | None, device: str | None, out: Path, levels: int | None, quiet: bool
) -> None:
    """Show images (files, folders or .zips) above what their codes keep of them."""
    check_out_is_new_picture(out)
    model = loaded(run, "vqvae", device)
    if levels is not None and levels > model.vqvae.config.model.levels:
        raise UsageError(
            f"--levels {levels}: the codes of {model.run.folder.path} have {model.vqvae.config.model.levels}"
        )
    everything = images_of_paths(model.vqvae.config, paths)[0]
    originals = everything[:_MOST_SHOWN]
    _announce(reporter_for_command(quiet), model, f"reconstruct {len(originals)} images")
    restored = model.reconstruct(originals, levels)
    columns = min(COLUMNS, len(originals))
    save_grid(out, interleaved(originals.numpy(), restored.numpy(), columns), columns)
    error = max(1e-12, float((originals.double() - restored.double()).div(255).square().mean()))
    psnr = -10 * math.log10(error)
    those = (
        f"the first {len(originals)} of {len(everything):,}" if len(everything) > _MOST_SHOWN else f"{len(originals)}"
    )
    say_result(f"wrote {out}: {those} images, each above its reconstruction; PSNR {psnr:.2f} dB")


@click.command("score")
@images_argument
@run_option
@device_option
@click.option("--class", "label", metavar="CLASS", help="What the images show [default: any class, in proportion].")
@click.option("--out", type=click.Path(path_type=Path), default="surprise.png", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image in place of the table.")
@quiet_option
def score_command(
    paths: tuple[Path, ...],
    run: Path | None,
    device: str | None,
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
    model = loaded(run, "samples", device)
    originals, names = images_of_paths(model.vqvae.config, paths)
    _announce(reporter, model, f"score {len(originals):,} images")
    scores = score(model, originals, label=label, reporter=reporter)
    order = scores.order()
    for index in order:
        row = {"bits": round(float(scores.bits[index]), 2)}
        if scores.bits_per_dim is not None:
            row["bits_per_dim"] = round(float(scores.bits_per_dim[index]), 4)
        columns = [f"{value:>10,.2f} {unit}" for unit, value in row.items()]
        as_text = json.dumps({**row, "image": names[index]})
        say_result(as_text if as_json else "  ".join([*columns, names[index]]))
    shown = order[: 2 * COLUMNS]
    width = min(COLUMNS, len(shown))
    save_grid(out, interleaved(originals[shown].numpy(), surprise_shown(scores, originals, shown), width), width)
    reporter.say(f"wrote {out}: the {len(shown)} most unusual, each above where its codes surprise")


@click.command("encode")
@click.argument("data")
@run_option
@device_option
@click.option("--out", type=click.Path(path_type=Path), default="codes.safetensors", show_default=True)
@quiet_option
def encode_command(data: str, run: Path | None, device: str | None, out: Path, quiet: bool) -> None:
    """Turn images (a folder, a .zip or a data set's name) into a file of code maps."""
    check_is_new(out)
    reporter = reporter_for_command(quiet)
    model = loaded(run, "vqvae", device)
    images = images_like(model.vqvae.config, data)
    _announce(reporter, model, f"encode {len(images.images):,} images of {data}")
    codes = model.encode(torch.from_numpy(images.images.copy()), reporter)
    dtype = code_dtype(model.vqvae.config.model)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    maps = CodeMaps(tuple(level.to(dtype) for level in codes), labels)
    save_codes(out, maps, {"codes_sha256": model.vqvae.codes_sha256, "fingerprint": images.fingerprint})
    sizes = " + ".join(f"{level.shape[-2]} x {level.shape[-1]}" for level in maps.levels)
    back = f"gen decode {out} --run {model.run.folder.path} --out DIR"
    say_result(f"wrote {out}: {len(maps):,} code maps, {sizes}; back to images: {back}")


@click.command("decode")
@click.argument("codes", type=click.Path(path_type=Path))
@run_option
@device_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the images.")
@quiet_option
def decode_command(codes: Path, run: Path | None, device: str | None, out: Path, quiet: bool) -> None:
    """Turn a file of code maps into images."""
    check_is_new(out)
    reporter = reporter_for_command(quiet)
    model = loaded(run, "vqvae", device)
    maps, ours = load_codes(codes), model.vqvae.codes_sha256
    metadata = load_metadata(codes)
    theirs = metadata.get("codes_sha256", metadata.get("vqvae_sha256", ours))  # the latter in files of format 3
    if theirs != ours:
        raise CheckpointError(
            f"{codes} was written by another vqvae: codes_sha256 {theirs[:12]}, this run has {ours[:12]}; "
            "name the run it came from with --run"
        )
    _announce(reporter, model, f"decode {len(maps):,} code maps of {codes}")
    Samples(model.decode(maps.levels, reporter), maps.levels, maps.labels, (), ours).save(out)
    say_result(f"wrote {len(maps):,} images into {out}")


def _announce(reporter: Reporter, model: Model, task: str) -> None:
    config = model.vqvae.config.model
    facts = [
        ("task", task),
        ("run", str(model.run.folder.path)),
        ("device", str(model.device)),
        ("images", images_in_words(config)),
        ("codes", codes_in_words(config)),
    ]
    reporter.say(table(facts))


COMMANDS = (reconstruct_command, score_command, encode_command, decode_command)
