"""The command `gen`: its commands, and what becomes of their faults."""

import io
import os
import signal
import sys
import traceback
from typing import Any

import click

from pipeline import processes
from pipeline.cli import app, codec, evaluate, images, machine, runs, sample, train
from pipeline.errors import GenError, exit_code, is_out_of_memory, was_stopped

_LESS_MEMORY = {
    "train-vqvae": "a smaller --batch-size, more --micro-batches or a smaller --image-size needs less",
    "train-prior": "a smaller --batch-size or more --micro-batches need less",
    "sharpen": "a smaller --batch-size or more --micro-batches need less",
    "compare": "a smaller --batch-size, more --micro-batches or a smaller --image-size needs less",
    "sample": "a smaller --batch-size needs less",
}


class _Group(click.Group):
    """Prints a fault that a person can mend in a line or two, and exits with its code; `--debug` adds the traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:  # as click has it
        """Run the command, and say in one form what click and we ourselves find wrong."""
        _make_streams_ready()
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            more = f"; `{context.command_path} --help` lists what there is" if context else ""
            click.echo(f"gen: error: {error.format_message().rstrip('.')}{more}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(128 + signal.SIGINT)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Refuse what no command line can hold, and a caller in Python can."""
        if wrong := next((argument for argument in arguments if "\0" in argument), None):
            raise click.UsageError(f"the argument {wrong!r:.60} holds a NUL character; leave it out", context)
        return super().parse_args(context, arguments)

    def invoke(self, context: click.Context) -> None:
        try:
            super().invoke(context)
            processes.stop()  # only now: after a fault the other processes are elsewhere, and must not be waited for
        except KeyboardInterrupt as error:  # where nothing is to be saved: a training ends with InterruptedRunError
            click.echo("gen: stopped", err=True)
            sys.exit(exit_code(error))
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            message = _fault(error, context.invoked_subcommand or "")
            if not message:
                raise
            if context.params["debug"]:
                traceback.print_exc()
            as_asked = exit_code(error) == 0 or was_stopped(error)
            click.echo(f"gen: {'' if as_asked else 'error: '}{message}", err=True)
            sys.exit(exit_code(error))


def _make_streams_ready() -> None:
    """Let what goes to a stream that the caller has closed go nowhere: it is no reason to stop.

    Else the next file that is opened would take its number, and what a library prints would land in that file. Names of
    files that are no UTF-8 are written as \\xfc on both streams, as Python does on standard error by itself.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fault(error: Exception, command: str) -> str:
    """What to say of an error that a person can mend; nothing of any other."""
    if isinstance(error, GenError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "the reader of the output has gone"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
    if is_out_of_memory(error):
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        advice = _LESS_MEMORY.get(command, "fewer images at a time need less")
        return f"out of memory; {advice} ({reason})"
    return ""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gen-images")
def main(debug: bool) -> None:
    """Learn a codebook from images, learn its maps, draw new images.

    \b
      gen train-vqvae && gen train-prior && gen sample --n 64
    """
    processes.keep_freed_memory()


_COMMANDS = (train, sample, images, codec, evaluate, app, runs, machine)
for _command in (command for module in _COMMANDS for command in module.COMMANDS):
    main.add_command(_command)
