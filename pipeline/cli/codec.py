"""`gen encode` and `gen decode`, `gen compress` and `gen decompress`: images to codes and back."""

from pathlib import Path
from typing import Unpack

import click
import numpy as np
import torch
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
from pipeline.cli.images import announce
from pipeline.cli.inputs import images_like
from pipeline.codec.compress import compress
from pipeline.codec.decompress import decompress_files
from pipeline.config.arguments import CompressArguments
from pipeline.config.codec import CompressConfig
from pipeline.config.sampling import DecoderName
from pipeline.data.codes.maps import CodeMaps, code_dtype, load_codes, save_codes
from pipeline.data.image_set import ImageSet
from pipeline.errors import CheckpointError, UsageError
from pipeline.reporting import Reporter, reporter_for_command
from pipeline.sampling.features import SUFFIXES, features_file
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.samples import Samples
from pipeline.storage import atomic_file, load_metadata


@click.command("encode")
@click.argument("data")
@run_option
@device_option
@click.option(
    "--features",
    "as_features",
    is_flag=True,
    help="In place of the maps, arrays for use elsewhere: histograms of codes, pooled encoder outputs, latents.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="New file [default: codes.safetensors]; of features .safetensors or .npz [default: features.safetensors].",
)
@quiet_option
def encode_command(
    data: str, run: Path | None, device: str | None, as_features: bool, out: Path | None, quiet: bool
) -> None:
    """Turn images (a folder, a .zip or a data set's name) into a file of code maps, or of features."""
    out = out or Path("features.safetensors" if as_features else "codes.safetensors")
    check_is_new(out)
    if as_features and out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out} of --features must end in {' or '.join(SUFFIXES)}")
    reporter = reporter_for_command(quiet)
    model = loaded(run, "vqvae", device, decoder="plain")  # which has no part in it
    images = images_like(model.vqvae.config, data)
    announce(reporter, model, f"encode {len(images.images):,} images of {data}")
    write = _write_features if as_features else _write_codes
    say_result(f"wrote {out}: {write(model, images, out, reporter)}")


def _write_features(model: Model, images: ImageSet, out: Path, reporter: Reporter) -> str:
    """Write features, and say what they are."""
    shapes = features_file(
        model,
        images.images,
        out,
        names=images.names,
        labels=images.labels,
        class_names=images.class_names,
        reporter=reporter,
    )
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())


def _write_codes(model: Model, images: ImageSet, out: Path, reporter: Reporter) -> str:
    """Write code maps, and say what they are."""
    codes = model.encode(images.images, reporter)
    dtype = code_dtype(model.vqvae.config.model)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    maps = CodeMaps(tuple(level.to(dtype) for level in codes), labels)
    with atomic_file(out) as unfinished:
        save_codes(unfinished, maps, {"codes_sha256": model.vqvae.codes_sha256, "fingerprint": images.fingerprint})
    sizes = " + ".join(f"{level.shape[-2]} x {level.shape[-1]}" for level in maps.levels)
    back = f"gen decode {out} --run {model.run.called} --out DIR"
    return f"{len(maps):,} code maps, {sizes}; back to images: {back}"


@click.command("decode")
@click.argument("codes", type=click.Path(path_type=Path))
@run_option
@device_option
@decoder_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the images.")
@quiet_option
def decode_command(
    codes: Path, run: Path | None, device: str | None, decoder: DecoderName | None, out: Path, quiet: bool
) -> None:
    """Turn a file of code maps into images."""
    check_is_new(out)
    reporter = reporter_for_command(quiet)
    model = loaded(run, "vqvae", device, decoder=decoder)
    maps, ours = load_codes(codes), model.vqvae.codes_sha256
    metadata = load_metadata(codes)
    theirs = metadata.get("codes_sha256", metadata.get("vqvae_sha256", ours))  # the latter in files of format 3
    if theirs != ours:
        raise CheckpointError(
            f"{codes} was written by another vqvae: codes_sha256 {theirs[:12]}, this run has {ours[:12]}; "
            "name the run it came from with --run"
        )
    announce(reporter, model, f"decode {len(maps):,} code maps of {codes}")
    Samples(model.decode(maps.levels, reporter), maps.levels, maps.labels, (), ours).save(out)
    say_result(f"wrote {len(maps):,} images into {out}")


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
        f"{model.run.called} --out DIR"
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


COMMANDS = (encode_command, decode_command, compress_command, decompress_command)
