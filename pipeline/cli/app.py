"""`gen app`."""

from pathlib import Path
from typing import Unpack

import click

from pipeline.cli.flags import device_option, flags, quiet_option, run_argument
from pipeline.config.app import AppConfig
from pipeline.config.arguments import AppArguments
from pipeline.reporting import reporter_for_command
from pipeline.serving.app import app


@click.command("app")
@run_argument
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@device_option
@quiet_option
@flags(AppConfig)
def app_command(
    run: Path | None, data: str | None, device: str | None, quiet: bool, **options: Unpack[AppArguments]
) -> None:
    """Try a run (by default the newest) in the browser: draw, complete, score and reconstruct images.

    The page is served on this machine alone (127.0.0.1) until Ctrl-C, and loads nothing from any other.
    """
    app(run, data=data, device=device, reporter=reporter_for_command(quiet), **options)


COMMANDS = (app_command,)
