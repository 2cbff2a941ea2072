"""`gen doctor`, `gen cache`: what is installed here and fits together, and what is kept."""

import importlib.metadata
import platform
import sys
from pathlib import Path

import click
import torch
from accelerate.commands.config.config_args import default_config_file

from pipeline.cli.flags import say_result
from pipeline.data.datasets import import_torchvision_datasets
from pipeline.data.kept import cache
from pipeline.errors import DataError, UsageError
from pipeline.processes import resolve_precision
from pipeline.reporting import table
from pipeline.resources import in_words

_PACKAGES = (
    "gen-images",
    "torch",
    "torchvision",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "einops",
    "click",
)


def report() -> tuple[str, bool]:
    """A table, and whether all is well."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["none; the CPU will do"]
    fits = torchvision_fits()
    rows = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        *((name, _version(name)) for name in _PACKAGES),
        ("torchvision fits torch", fits or "yes"),
        ("GPUs", ", ".join(devices)),
        (
            "CPU",
            f"{torch.get_num_threads()} threads, {resolve_precision('auto', torch.device('cpu'))} by default",
        ),
        ("accelerate's defaults", default_config_file if Path(default_config_file).exists() else "none set"),
        ("cache", str(cache.cache_folder())),
    ]
    return table(rows), not fits


def torchvision_fits() -> str:
    """Why torchvision cannot be imported beside this torch; empty when it can."""
    try:
        import_torchvision_datasets()
    except DataError as error:
        return f"NO: {error}"
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@click.command("doctor")
def doctor_command() -> None:
    """Say what is installed, which devices there are, and whether torch and torchvision fit together."""
    text, well = report()
    click.echo(text)
    if not well:
        raise UsageError("torch and torchvision do not fit together; install both anew, from the same place")


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all that no command is using, downloads included.")
def cache_command(clear: bool) -> None:
    """Say which images, decoded or downloaded, runs of the Hub, and judges of images are kept, and how much they take.

    GEN_CACHE names another folder for them. With GEN_CACHE_GIB=20 those decoded sets that were not used for longest are
    removed, before others are decoded, so that all take 20 GiB at most.
    """
    if clear:
        removed, left = cache.clear()
        in_use = f"; {in_words(left)} are in use" if cache.entries() else ""
        say_result(f"removed {in_words(removed)} from {cache.cache_folder()}{in_use}")
        return
    entries, allowed = cache.entries(), cache.limit()
    limit = f"no limit; {cache.LIMIT} sets one" if allowed is None else f"at most {in_words(allowed)}"
    rows = [("cache", f"{cache.cache_folder()}, {in_words(cache.size_of(cache.cache_folder()))}")]
    sets = "1 data set" if len(entries) == 1 else f"{len(entries)} data sets"
    rows += [("decoded", f"{sets}, {in_words(sum(entry.size for entry in entries))}; {limit}")]
    rows += [(f"  {entry.data}", _in_words(entry)) for entry in reversed(entries)]
    rows += [("downloaded", in_words(cache.size_of(cache.downloads_folder())))]
    rows += [(f"  {name}", in_words(size)) for name, size in cache.downloads()]
    rows += [("runs of the Hub", in_words(cache.size_of(cache.hub_folder())))]
    rows += [("judges", f"{len(cache.judges())}, {in_words(cache.size_of(cache.judges_folder()))}")]
    say_result(table(rows))


def _in_words(entry: cache.Entry) -> str:
    n, *one = entry.shape
    return f"{n:,} images of {' x '.join(map(str, one))}, {in_words(entry.size)}, last used {entry.used:%Y-%m-%d %H:%M}"


COMMANDS = (doctor_command, cache_command)
