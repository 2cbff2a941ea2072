"""`gen sample`, `gen complete`."""

from dataclasses import asdict
from pathlib import Path
from typing import Unpack

import click
import numpy as np
from jaxtyping import Bool

from pipeline.cli.flags import (
    check_is_new,
    check_out_is_new_picture,
    decoder_option,
    device_option,
    flags,
    quiet_option,
    run_argument,
    run_option,
    save_grid,
    say_result,
)
from pipeline.cli.inputs import images_like, single_image
from pipeline.config.arguments import CompleteArguments, GenerateFilesArguments
from pipeline.config.options import build
from pipeline.config.sampling import GRID_IMAGES, CompleteConfig, DecoderName, FileConfig, SampleConfig
from pipeline.data import pixels
from pipeline.data.pictures import COLUMNS
from pipeline.data.sources.base import SUFFIXES
from pipeline.errors import UsageError
from pipeline.reporting import is_main_process, reporter_for_command, table
from pipeline.runs.saved import VQVAERun, codes_in_words, images_in_words
from pipeline.sampling.complete import complete
from pipeline.sampling.generate import generate_files
from pipeline.sampling.labels import class_numbers
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.motion.film import check_film, film
from pipeline.sampling.samples import GRID, first_codes, written_parts
from stage2_prior import SamplingOptions


@click.command("sample")
@run_argument
@click.option(
    "--class",
    "label",
    metavar="CLASS,...|balanced",
    help="Classes to draw, in turn, by name or number [default: in the data's proportions].",
)
@device_option
@decoder_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder [default: RUN/samples/seed-SEED, and the classes asked for]."
)
@click.option(
    "--film",
    "film_path",
    type=click.Path(path_type=Path),
    help=f"Also a film of how the first {GRID_IMAGES} are drawn: a .gif, .webp or .png.",
)
@quiet_option
@flags(SampleConfig, SamplingOptions, FileConfig)
def sample_command(
    run: Path | None,
    label: str | None,
    device: str | None,
    decoder: DecoderName | None,
    out: Path | None,
    film_path: Path | None,
    quiet: bool,
    **options: Unpack[GenerateFilesArguments],
) -> None:
    """Draw new images from a run (by default the newest). Typed again, it draws what an interruption left out."""
    config, sampling, files = build(options, SampleConfig, SamplingOptions, FileConfig)
    model = loaded(run, "samples", device, config.precision, decoder)
    if film_path is not None:
        check_is_new(film_path, "--film")
        check_film(model, film_path)
    reporter = reporter_for_command(quiet)
    reporter.say(_task(model, config, model.resolve(sampling), files, label))
    done = generate_files(model, label=label, out=out, reporter=reporter, **options)
    there = done.n - done.new
    wrote = f"wrote {done.new:,} images into {done.folder}{f', where {there:,} were already' if there else ''}"
    whole = f"{done.folder} already holds all {done.n:,} images"
    say_result(f"{wrote if done.new else whole}; see {done.folder / GRID}")
    if film_path is not None and is_main_process():
        codes = first_codes(done.folder, written_parts(done.folder, files.format), min(config.n, GRID_IMAGES))
        say_result(f"wrote {film(model, codes, film_path)}: how they are drawn, in raster order")


def _task(model: Model, config: SampleConfig, sampling: SamplingOptions, files: FileConfig, label: str | None) -> str:
    vqvae, names = model.vqvae.config.model, model.priors[0].config.class_names if model.priors else ()
    asked = label and ", ".join(names[number] for number in class_numbers(label, names)) + ", in turn"
    classes = asked if names and asked else f"{len(names)} as in the training data" if names else "none"
    sharpened = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in asdict(sampling).items()
        if value is not None and value != "constant"
    )
    return table(
        [
            ("task", f"draw {config.n:,} images as {files.format}, seed {config.seed}, {sharpened}"),
            ("run", model.run.called),
            ("device", str(model.device)),
            ("codes", codes_in_words(vqvae)),
            ("images", f"{images_in_words(vqvae)}, {model.run.decoder} decoder"),
            ("classes", classes),
        ]
    )


@click.command("complete")
@click.argument("image", type=click.Path(path_type=Path))
@run_option
@click.option("--keep", metavar="SIDE:FRACTION", help="The part that stands: top:0.5, or of bottom, left, right.")
@click.option("--mask", type=click.Path(path_type=Path), help="Or a picture, white where the image stands.")
@click.option(
    "--class",
    "label",
    metavar="CLASS,...",
    help="Class of the image [default: drawn at random, in favour of those that fit the kept part].",
)
@device_option
@decoder_option
@click.option("--out", type=click.Path(path_type=Path), default="completions.png", show_default=True)
@flags(CompleteConfig, SamplingOptions)
def complete_command(
    image: Path,
    run: Path | None,
    keep: str | None,
    mask: Path | None,
    label: str | None,
    device: str | None,
    decoder: DecoderName | None,
    out: Path,
    **options: Unpack[CompleteArguments],
) -> None:
    """Keep a part of an image and draw the rest, several times.

    Codes are drawn in raster order, row by row, each given all codes before it. What is kept above or to the left is
    honoured by what is drawn after it. What is kept below or to the right stays as it is, but what is drawn before it
    cannot know of it, unless of several --candidates one is chosen by how well it fits. Of several levels of codes the
    coarsest is drawn whole before the next, so there --candidates matter more. The picture shows images as decoded
    from codes, kept parts too.
    """
    check_out_is_new_picture(out)
    if (keep is None) == (mask is None):
        raise UsageError("say what stands: either --keep top:0.5, or --mask MASK.png")
    build(options, CompleteConfig, SamplingOptions)
    model = loaded(run, "samples", device, decoder=decoder)
    config = model.vqvae.config
    original = single_image(image, images_like(config, str(image)))
    kept = str(keep) if mask is None else _mask_of_picture(mask, image, config)
    done = complete(model, original.copy(), kept, label=label, **options)
    grey = np.where(done.kept, original, 128).astype(np.uint8)
    shown = np.concatenate([np.stack([original, grey]), done.images.numpy()])
    save_grid(out, shown, min(len(shown), 2 + COLUMNS))
    say_result(f"wrote {out}: the image, what is kept, and {len(done.images)} completions")


def _mask_of_picture(mask: Path, image: Path, config: VQVAERun) -> Bool[np.ndarray, "h w"]:
    """Where a picture is white, cut to size as the image is. Raises UsageError unless both have one shape."""
    for path in (mask, image):
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"a --mask lies over one picture, and {path} is no picture file")
    grey, size = images_like(config, str(mask), "grey"), (config.model.height, config.model.width)
    (mask_width, mask_height), (width, height) = (pixels.open_image(path.read_bytes()).size for path in (mask, image))
    if (mask_width, mask_height) not in ((width, height), size[::-1]):
        raise UsageError(
            f"{mask} has {mask_width}x{mask_height} pixels and {image} {width}x{height}; a mask lies over its image, "
            f"or has the {size[1]}x{size[0]} that this run sees of it"
        )
    return single_image(mask, grey)[0] > 127


COMMANDS = (sample_command, complete_command)
