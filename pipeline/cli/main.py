"""The command `gen`: its commands, and what becomes of their faults."""

import os
import signal
import sys
import traceback
from typing import Any

import click
import torch

from pipeline import processes
from pipeline.cli import images, runs, sample, train
from pipeline.errors import GenError, InterruptedRunError

_LESS_MEMORY = {
    "train-vqvae": "a smaller --batch-size, more --micro-batches or a smaller --image-size needs less",
    "train-prior": "a smaller --batch-size or more --micro-batches need less",
    "compare": "a smaller --batch-size, more --micro-batches or a smaller --image-size needs less",
    "sample": "a smaller --batch-size needs less",
}


class _Group(click.Group):
    """Prints a fault that a person can mend in a line or two, and exits with its code; `--debug` adds the traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command, and say in one form what click and we ourselves find wrong."""
        _open_closed_streams()
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

    def invoke(self, context: click.Context) -> None:
        try:
            super().invoke(context)
            processes.stop()  # only now: after a fault the other processes are elsewhere, and must not be waited for
        except KeyboardInterrupt:  # where nothing is to be saved: a training ends by itself, with InterruptedRunError
            click.echo("gen: stopped", err=True)
            sys.exit(128 + signal.SIGINT)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            message, exit_code = _fault(error, context.invoked_subcommand or "")
            if not message:
                raise
            if context.params["debug"]:
                traceback.print_exc()
            as_asked = exit_code == 0 or isinstance(error, InterruptedRunError)
            click.echo(f"gen: {'' if as_asked else 'error: '}{message}", err=True)
            sys.exit(exit_code)


def _open_closed_streams() -> None:
    """Let what goes to a stream that the caller has closed go nowhere: it is no reason to stop.

    Else the next file that is opened would take its number, and what a library prints would land in that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _fault(error: Exception, command: str) -> tuple[str, int]:
    """What to say of an error that a person can mend, and the exit code; nothing of any other."""
    if isinstance(error, GenError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):  # whoever reads the output has seen enough
        return "the reader of the output has gone", 128 + signal.SIGPIPE
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 6
    # Also torch's own: of a GPU, and of the CPU's allocator, which has no kind of its own.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        advice = _LESS_MEMORY.get(command, "fewer images at a time need less")
        return f"out of memory; {advice} ({reason})", 6
    return "", 1


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gen-images")
def main(debug: bool) -> None:
    """Learn a codebook from images, learn its maps, draw new images.

    \b
      gen train-vqvae && gen train-prior && gen sample --n 64
    """
    processes.keep_freed_memory()


for _command in (*train.COMMANDS, *sample.COMMANDS, *images.COMMANDS, *runs.COMMANDS):
    main.add_command(_command)
