"""Flags of commands: those of the configurations' fields, and those that many commands share."""

import functools
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

import click
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic.fields import FieldInfo

from pipeline.config.options import Options, given, option_fields
from pipeline.config.sampling import DecoderName
from pipeline.data import pixels
from pipeline.data.sources.base import SUFFIXES
from pipeline.errors import UsageError
from pipeline.reporting import is_main_process
from pipeline.resources import check_writable
from pipeline.storage import atomic_file, check_paths

P = ParamSpec("P")
Command = Callable[P, None]
Decorator = Callable[[Command[...]], Command[...]]

device_option = click.option("--device", help="Such as cpu or cuda:0 [default: a GPU if there is one].")
decoder_option = click.option(
    "--decoder",
    type=click.Choice(get_args(DecoderName)),
    help="That of stage 1, or that of `gen sharpen` [default: sharp where there is one].",
)
_RUN_HELP = "Run folder, pretrained:digits, or hf://USER/NAME [default: the newest]."
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress; errors and the result alone.")


def flags(*configs: type, preset: Options | None = None, without: Iterable[str] = ()) -> Decorator:
    """A decorator that gives a command one flag for each option; it is called with those that were given alone.

    `preset`: defaults that the help shows in place of the fields' own; `without`: fields that get no flag.
    """
    made = [
        _flag(name, field, get_type_hints(config)[name], (preset or {}).get(name, field.default))
        for config in configs
        for name, field in option_fields(config).items()
        if name not in set(without)
    ]
    names = {name for config in configs for name in option_fields(config)}

    def decorate(command: Command[...]) -> Command[...]:
        @functools.wraps(command)
        def called(**arguments: object) -> None:
            absent = names - given(arguments).keys()
            command(**{name: value for name, value in arguments.items() if name not in absent})

        decorated: Command[...] = called
        for option in reversed(made):
            decorated = option(decorated)
        return decorated

    return decorate


def _flag(name: str, field: FieldInfo, hint: object, default: object) -> Decorator:
    dashed, kind = name.replace("_", "-"), _click_type(hint)
    declaration = f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}"
    words = {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)
    shown = "" if default in (None, ()) else f"  [default: {words}]"
    return click.option(declaration, name, default=None, type=kind, help=f"{field.description}{shown}")


def _click_type(hint: object) -> click.Choice[str | int] | type:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [part for part in get_args(hint) if part is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else str  # a number or a word: the dataclass knows which
    if get_origin(hint) is tuple:  # several, between commas, which the dataclass divides
        hint = str
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    assert isinstance(hint, type)
    return hint


def run_option(command: Command[...]) -> Command[...]:
    """`--run`, which every command about a run takes."""
    return click.option("--run", type=click.Path(path_type=Path), help=_RUN_HELP)(command)


def run_argument(command: Command[...]) -> Command[...]:
    """`--run`, or RUN by itself where nothing else stands on the command line."""

    @click.argument("positional_run", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
    @run_option
    @functools.wraps(command)
    def called(*, run: Path | None, positional_run: Path | None, **arguments: object) -> None:
        if run is not None and positional_run is not None and run != positional_run:
            raise UsageError(f"two runs are named, {positional_run} and --run {run}; name one")
        command(run=run or positional_run, **arguments)

    return called


def say_result(text: str) -> None:
    """Print a result on standard output, once whatever the number of processes."""
    if is_main_process():
        click.echo(text)


def check_is_new(path: Path, flag: str = "--out") -> None:
    """Raise UsageError when there is something of that name already, and ResourceError when nothing can be written."""
    check_paths(out=path)
    check_writable(path)
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already; choose another {flag}")


def check_out_is_new_picture(out: Path) -> None:
    """Raise UsageError, or ResourceError, unless a picture can be written under this name."""
    check_is_new(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out} is no picture's name; end it in .png")


def save_grid(out: Path, images: UInt8[np.ndarray, "n c h w"], columns: int) -> None:
    """Write images as one picture, under its name only once it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as unfinished:
        pixels.grid(images, columns).save(unfinished, format=Image.registered_extensions()[out.suffix.lower()])
