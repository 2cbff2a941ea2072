"""The command `gen`: it parses, calls and prints. What it calls is the Python API."""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from pipeline import commands, processes
from pipeline.codes import AugmentConfig
from pipeline.compare import DEFAULT as COMPARED
from pipeline.completion import CompleteConfig
from pipeline.data import DataConfig
from pipeline.errors import GenError
from pipeline.generate import FileConfig, SampleConfig
from pipeline.options import flags
from pipeline.settings import PRESETS, TrainingConfig
from stage1_vqvae import VQVAEConfig, VQVAEError
from stage2_prior import PriorConfig, PriorError, Warp

_KNOWN_FAULTS = (GenError, VQVAEError, PriorError)


_SMALLER = "a smaller --batch-size, more --micro-batches or a smaller --image-size needs less"


def _is_out_of_memory(error: Exception) -> bool:
    """Also torch's own: of a GPU, and of the CPU's allocator, which has no kind of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Group(click.Group):
    """Prints a fault that a person can mend in a line or two, and exits with its code; `--debug` adds the traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            result = super().invoke(context)
            processes.stop()  # only now: after a fault the other processes are elsewhere, and must not be waited for
            return result
        except _KNOWN_FAULTS as error:
            if context.params["debug"]:
                traceback.print_exc()
            click.echo(f"gen: error: {error}", err=True)
            sys.exit(getattr(error, "exit_code", 2))
        except OSError as error:
            if context.params["debug"]:
                traceback.print_exc()
            click.echo(f"gen: error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
            sys.exit(6)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if context.params["debug"]:
                traceback.print_exc()
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            click.echo(f"gen: error: out of memory; {_SMALLER} ({reason})", err=True)
            sys.exit(6)
        except KeyboardInterrupt:  # where nothing is to be saved: a training ends by itself, with InterruptedRunError
            click.echo("gen: stopped", err=True)
            sys.exit(128 + signal.SIGINT)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gen-images")
def main(debug: bool) -> None:
    """Learn a codebook from images, learn its maps, draw new images.

    \b
      gen train-vqvae && gen train-prior && gen sample --n 64
    """
    processes.keep_freed_memory()


_PRESET_HELP = {
    "vqvae": "Size [default: digits for the embedded digits, else base].",
    "prior": "Size and dropout [default: digits for the embedded digits; small for less than 5,000 images; else base].",
}
_OUT_HELP = {
    "vqvae": "Run folder [default: runs/ and the data's name].",
    "prior": "Another run folder, to which stage 1 is copied [default: RUN itself].",
}


def _training_options(stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What both trainings can be asked for besides the fields of their configurations."""
    options = [
        click.option("--preset", type=click.Choice(list(PRESETS)), help=_PRESET_HELP[stage]),
        click.option("--config", type=click.Path(path_type=Path), help="A config.json that a run saved: its options."),
        click.option("--out", type=click.Path(path_type=Path), help=_OUT_HELP[stage]),
        click.option("--resume", metavar="auto|PATH", help="Go on from the newest checkpoint, or from this one."),
        click.option("--log", type=click.Choice(["tensorboard"]), help="Log there too, besides metrics.jsonl."),
    ]
    return lambda command: functools.reduce(lambda done, option: option(done), reversed(options), command)


@main.command()
@_training_options("vqvae")
@flags(DataConfig, VQVAEConfig, TrainingConfig, preset=PRESETS["base"].vqvae)
def train_vqvae(**options: Any) -> None:
    """Stage 1: learn a codebook from images."""
    commands.train_vqvae(options)


@main.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@_training_options("prior")
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@click.option("--force", is_flag=True, help="Go on even if the codebook of stage 1 has collapsed.")
@click.option("--level", type=click.IntRange(0), help="Of several levels this one alone; 0 is the coarsest.")
@flags(PriorConfig, TrainingConfig, AugmentConfig, preset=PRESETS["base"].prior)
def train_prior(run: Path | None, **options: Any) -> None:
    """Stage 2: learn how the codes of a run (by default the newest) are distributed, level by level."""
    commands.train_prior(run, options)


@main.command()
@click.option("--bottlenecks", default=",".join(COMPARED), show_default=True, help="Which, separated by commas.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=_PRESET_HELP["vqvae"])
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: runs/ and the data's name, -compared].")
@flags(DataConfig, VQVAEConfig, TrainingConfig, preset=PRESETS["base"].vqvae, without=("bottleneck",))
def compare(bottlenecks: str, out: Path | None, **options: Any) -> None:
    """Train stage 1 with several bottlenecks at the same size and budget; write a table and a picture."""
    commands.compare(bottlenecks, out, options)


@main.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--class",
    "label",
    metavar="CLASS,...|balanced",
    help="Classes to draw, in turn, by name or number [default: in the data's proportions].",
)
@click.option("--device", help="Such as cpu or cuda:0 [default: a GPU if there is one].")
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: RUN/samples/seed-SEED].")
@flags(SampleConfig, Warp, FileConfig)
def sample(run: Path | None, label: str | None, device: str | None, out: Path | None, **options: Any) -> None:
    """Draw new images from a run (by default the newest). Typed again, it draws what an interruption left out."""
    commands.sample(run, label, device, out, {name: value for name, value in options.items() if value is not None})


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="IMAGES...", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run folder [default: the newest].")
@click.option("--out", type=click.Path(path_type=Path), default="reconstructions.png", show_default=True)
@click.option("--levels", type=click.IntRange(1), help="Of several levels of codes the first ones only.")
def reconstruct(paths: tuple[Path, ...], run: Path | None, out: Path, levels: int | None) -> None:
    """Show images (files, folders or .zips) above what their codes keep of them."""
    commands.reconstruct(paths, run, out, levels)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="IMAGES...", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run folder [default: the newest].")
@click.option("--class", "label", metavar="CLASS", help="What the images show [default: any class, in proportion].")
@click.option("--out", type=click.Path(path_type=Path), default="surprise.png", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object an image in place of the table.")
def score(paths: tuple[Path, ...], run: Path | None, label: str | None, out: Path, as_json: bool) -> None:
    """Say which images (files, folders or .zips) are unusual: bits of their codes under the prior, the most first.

    The picture shows the most unusual ones above where they surprise. What stage 1 does not keep of an image is not
    seen: compare with `gen reconstruct`.
    """
    commands.score(paths, run, label, out, as_json)


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run folder [default: the newest].")
@click.option("--keep", metavar="SIDE:SHARE", help="The part that stands: top:0.5, or of bottom, left, right.")
@click.option("--mask", type=click.Path(path_type=Path), help="Or a picture, white where the image stands.")
@click.option("--class", "label", metavar="CLASS,...", help="What the image shows [default: drawn by what is kept].")
@click.option("--out", type=click.Path(path_type=Path), default="completions.png", show_default=True)
@flags(CompleteConfig, Warp)
def complete(image: Path, run: Path | None, keep: str | None, mask: Path | None, out: Path, **options: Any) -> None:
    """Keep a part of an image and draw the rest, several times.

    Codes are drawn in raster order, row by row, each given all codes before it. What is kept above or to the left is
    honoured by what is drawn after it. What is kept below or to the right stays as it is, but what is drawn before it
    cannot know of it, unless of several --candidates one is chosen by how well it fits. Of several levels of codes the
    coarsest is drawn whole before the next, so there --candidates matter more. The picture shows images as decoded
    from codes, kept parts too.
    """
    commands.complete(
        image, run, keep, mask, out, {name: value for name, value in options.items() if value is not None}
    )


@main.command()
@click.argument("data")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder [default: the newest].")
@click.option("--out", type=click.Path(path_type=Path), default="codes.safetensors", show_default=True)
def encode(data: str, run: Path | None, out: Path) -> None:
    """Turn images (a folder, a .zip or a dataset's name) into a file of code maps."""
    commands.encode(data, run, out)


@main.command()
@click.argument("codes", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run folder [default: the newest].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the images.")
def decode(codes: Path, run: Path | None, out: Path) -> None:
    """Turn a file of code maps into images."""
    commands.decode(codes, run, out)


@main.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
def info(run: Path | None) -> None:
    """Say what a run (by default the newest) holds, and check its files."""
    commands.info(run)


@main.command()
def doctor() -> None:
    """Say what is installed, which devices there are, and whether torch and torchvision fit together."""
    commands.doctor()
