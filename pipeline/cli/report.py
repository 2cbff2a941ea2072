"""`gen report`."""

from pathlib import Path

import click

from pipeline.cli.flags import device_option, quiet_option, say_result
from pipeline.evaluation.report.report import report
from pipeline.reporting import reporter_for_command


@click.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="New .html file [default: report.html in the run].")
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@device_option
@quiet_option
def report_command(runs: tuple[Path, ...], out: Path | None, data: str | None, device: str | None, quiet: bool) -> None:
    """Show what a run (by default the newest) is, in one HTML file: what limits it, curves, pictures, figures.

    Two runs are shown side by side. The file needs no network and no server.
    """
    done = report(*runs, out=out, data=data, device=device, reporter=reporter_for_command(quiet))
    say_result(f"wrote {done}")


COMMANDS = (report_command,)
