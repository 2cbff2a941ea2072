"""`gen compress` and `gen decompress`."""

from pathlib import Path
from typing import Unpack

import click
import numpy as np
from jaxtyping import Int

from pipeline.cli.flags import (
    check_is_new,
    decoder_option,
    device_option,
    flags,
    quiet_option,
    run_option,
    say_result,
)
from pipeline.cli.inputs import images_like
from pipeline.codec.compress import compress
from pipeline.codec.decompress import decompress_files
from pipeline.config.arguments import CompressArguments
from pipeline.config.codec import CompressConfig
from pipeline.config.sampling import DecoderName
from pipeline.data.image_set import ImageSet
from pipeline.reporting import reporter_for_command
from pipeline.sampling.model import loaded


@click.command("compress")
@click.argument("data")
@run_option
@flags(CompressConfig)
@device_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New file, such as images.genz.")
@quiet_option
def compress_command(
    data: str, run: Path | None, device: str | None, out: Path, quiet: bool, **options: Unpack[CompressArguments]
) -> None:
    """Write images (a folder, a .zip, a file or a data set's name) into a small file of their codes.

    The prior of the run says how probable each code is, and the file needs as many bits as that. The codes come back
    exactly, the images as `gen reconstruct` shows them. Typed again, it goes on where it was stopped.
    """
    check_is_new(out)
    model = loaded(run, "samples", device, decoder="plain")  # a decoder has no part in it
    images = images_like(model.vqvae.config, data)
    labels = _labels_of(images, model.priors[0].config.class_names if model.priors else ())
    reporter = reporter_for_command(quiet)
    done = compress(model, images.images, out, labels=labels, names=images.names, reporter=reporter, **options)
    pixels = done.images * images.shape[1] * images.shape[2]
    raw = f", {done.raw_blocks} of them as they are" if done.raw_blocks else ""
    say_result(
        f"wrote {out}: {done.images:,} images of {images.shape[1]}x{images.shape[2]} in {done.bytes:,} bytes, "
        f"{done.bytes / done.images:.1f} an image, {8 * done.bytes / pixels:.3f} bits a pixel; {done.payload_bytes:,} "
        f"bytes are codes, in {done.blocks:,} blocks{raw}; back to images: gen decompress {out} --run "
        f"{model.run.folder.path} --out DIR"
    )


def _labels_of(images: ImageSet, class_names: tuple[str, ...]) -> Int[np.ndarray, "n"] | None:
    """The run's number for the class of each image, -1 for a class that it does not know."""
    if images.labels is None:
        return None
    numbers = [class_names.index(name) if name in class_names else -1 for name in images.class_names]
    return np.array(numbers)[images.labels]


@click.command("decompress")
@click.argument("file", type=click.Path(path_type=Path))
@run_option
@device_option
@decoder_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the images.")
@quiet_option
def decompress_command(
    file: Path, run: Path | None, device: str | None, decoder: DecoderName | None, out: Path, quiet: bool
) -> None:
    """Write the images of a file that `gen compress` wrote, as PNG files under their names.

    A file that is damaged is refused, with the block that is, and so is one that this machine would decode to other
    codes than were written. Typed again, it goes on where it was stopped.
    """
    reporter = reporter_for_command(quiet)
    done = decompress_files(file, out, run, device=device, decoder=decoder, reporter=reporter)
    there = f", where {done.n - done.new:,} were already" if done.new < done.n else ""
    say_result(f"wrote {done.new:,} images into {out}{there}")


COMMANDS = (compress_command, decompress_command)
