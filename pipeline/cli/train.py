"""`gen train-vqvae`, `gen train-prior`, `gen sharpen`, `gen compare`."""

import functools
from pathlib import Path
from typing import Unpack

import click

from pipeline.cli.flags import Command, flags, quiet_option, run_argument, say_result
from pipeline.config.arguments import CompareArguments, PriorArguments, SharpenArguments, VQVAEArguments
from pipeline.config.data import DataConfig
from pipeline.config.options import option_names
from pipeline.config.presets import PRESETS, PresetName
from pipeline.config.training import AugmentConfig, TrainingConfig
from pipeline.errors import UsageError
from pipeline.evaluation.compare import DEFAULT, compare, markdown
from pipeline.evaluation.report.charts import check_can_draw
from pipeline.evaluation.report.report import report
from pipeline.processes import TRACKERS
from pipeline.reporting import reporter_for_command
from pipeline.runs.layout import SHARP, RunFolder
from pipeline.runs.saved import SAMPLED_FROM_NORMAL, VQVAERun, read_config
from pipeline.training.levels import check_codebook
from pipeline.training.sharpen import sharpen
from pipeline.training.stage1 import default_folder, train_vqvae
from pipeline.training.stage2 import train_prior
from stage1_vqvae import ObjectiveConfig, VQVAEConfig
from stage2_prior import PriorConfig

_PRESET_HELP = {
    "vqvae": "Size [default: digits for the embedded digits, else base].",
    "prior": "Size and dropout [default: digits for the embedded digits; small for less than 5,000 images; else base].",
}
_OUT_HELP = {
    "vqvae": "Run folder [default: runs/ and the data's name].",
    "prior": "Another run folder, to which stage 1 is copied [default: RUN itself].",
}


def _training_options(stage: str, command: Command[...]) -> Command[...]:
    """What both trainings can be asked for besides the fields of their configurations."""
    options = [
        click.option("--preset", type=click.Choice(list(PRESETS)), help=_PRESET_HELP[stage]),
        click.option("--config", type=click.Path(path_type=Path), help="A config.json that a run saved: its options."),
        click.option("--out", type=click.Path(path_type=Path), help=_OUT_HELP[stage]),
    ]
    return functools.reduce(lambda done, option: option(done), reversed(options), _loop_options(command))


def _loop_options(command: Command[...]) -> Command[...]:
    """What every training can be asked for besides the fields of its configurations."""
    options = [
        click.option("--resume", metavar="auto|PATH", help="Go on from the newest checkpoint, or from this one."),
        click.option("--log", type=click.Choice(TRACKERS), help="Log there too, besides metrics.jsonl."),
        click.option("--report", "reports", is_flag=True, help="In the end write report.html, as gen report does."),
        quiet_option,
    ]
    return functools.reduce(lambda done, option: option(done), reversed(options), command)


def _check_can_report(reports: bool) -> None:
    """Raise, before the training and not after it, what a report would."""
    if reports:
        check_can_draw()


def _report(reports: bool, run: Path, data: str | None, quiet: bool) -> None:
    if reports:
        say_result(f"wrote {report(run, data=data, reporter=reporter_for_command(quiet))}")


@click.command("train-vqvae")
@functools.partial(_training_options, "vqvae")
@click.option("--init", metavar="RUN", type=click.Path(path_type=Path), help="Begin from stage 1 of this run.")
@flags(DataConfig, VQVAEConfig, TrainingConfig, preset=PRESETS["base"].vqvae)
def train_vqvae_command(
    out: Path | None,
    resume: str | None,
    preset: PresetName | None,
    config: Path | None,
    log: str | None,
    init: Path | None,
    reports: bool,
    quiet: bool,
    **options: Unpack[VQVAEArguments],
) -> None:
    """Stage 1: learn a codebook from images."""
    _check_can_report(reports)
    done = train_vqvae(
        out=out,
        resume=resume,
        preset=preset,
        config=config,
        log=log,
        init=init,
        reporter=reporter_for_command(quiet),
        **options,
    )
    model = read_config(RunFolder(done.run).vqvae, VQVAERun).model
    sampled = model.bottleneck in SAMPLED_FROM_NORMAL
    after = f"train-prior {done.run}" if model.is_discrete else f"sample {done.run}" if sampled else f"info {done.run}"
    say_result(f"wrote {done.run / 'vqvae'} (validation: {done.validation.brief()}); next: gen {after}")
    if model.is_discrete:
        try:
            check_codebook(RunFolder(done.run), model, done.validation)
        except UsageError as warning:
            click.echo(f"gen: warning: {warning}", err=True)
    _report(reports, done.run, None, quiet)


@click.command("train-prior")
@run_argument
@functools.partial(_training_options, "prior")
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@click.option("--force", is_flag=True, help="Go on even if the codebook of stage 1 has collapsed.")
@click.option("--level", type=click.IntRange(0), help="Of several levels this one alone; 0 is the coarsest.")
@flags(PriorConfig, TrainingConfig, AugmentConfig, preset=PRESETS["base"].prior)
def train_prior_command(
    run: Path | None,
    level: int | None,
    out: Path | None,
    resume: str | None,
    preset: PresetName | None,
    config: Path | None,
    log: str | None,
    data: str | None,
    force: bool,
    reports: bool,
    quiet: bool,
    **options: Unpack[PriorArguments],
) -> None:
    """Stage 2: learn how the codes of a run (by default the newest) are distributed, level by level."""
    _check_can_report(reports)
    done = train_prior(
        run,
        level=level,
        out=out,
        resume=resume,
        preset=preset,
        config=config,
        log=log,
        data=data,
        force=force,
        reporter=reporter_for_command(quiet),
        **options,
    )
    next_command = f"gen sample {done.run} --n 64"
    say_result(f"wrote {done.run / 'prior'} (validation: {done.validation.brief()}); next: {next_command}")
    _report(reports, done.run, data, quiet)


@click.command("sharpen")
@run_argument
@_loop_options
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@flags(ObjectiveConfig, TrainingConfig, preset=dict.fromkeys(option_names(TrainingConfig)), without=("patience",))
def sharpen_command(
    run: Path | None,
    resume: str | None,
    log: str | None,
    data: str | None,
    reports: bool,
    quiet: bool,
    **options: Unpack[SharpenArguments],
) -> None:
    """Train the decoder of a finished stage 1 further (by default of the newest run), for sharp pictures.

    Codes stay as they are, and priors trained on them, before or after, stay right. Options of the training that are
    not given are those that stage 1 was trained with, but for --micro-batches and --precision, and --steps a quarter of
    its steps.
    """
    _check_can_report(reports)
    done = sharpen(run, resume=resume, log=log, data=data, reporter=reporter_for_command(quiet), **options)
    wrote = RunFolder(done.run).decoder(SHARP)
    say_result(f"wrote {wrote} (validation: {done.validation.brief()}); images are decoded with it from now on")
    _report(reports, done.run, data, quiet)


@click.command("compare")
@click.option("--bottlenecks", default=",".join(DEFAULT), show_default=True, help="Which, separated by commas.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=_PRESET_HELP["vqvae"])
@click.option("--out", type=click.Path(path_type=Path), help="Folder [default: runs/ and the data's name, -compared].")
@quiet_option
@flags(DataConfig, VQVAEConfig, TrainingConfig, preset=PRESETS["base"].vqvae, without=("bottleneck",))
def compare_command(
    bottlenecks: str, preset: PresetName | None, out: Path | None, quiet: bool, **options: Unpack[CompareArguments]
) -> None:
    """Train stage 1 with several bottlenecks at the same size and budget; write a table and a picture."""
    default = default_folder(dict(options))
    done = compare(
        out=out or default.with_name(f"{default.name}-compared"),
        bottlenecks=bottlenecks.split(","),
        preset=preset,
        reporter=reporter_for_command(quiet),
        **options,
    )
    say_result(f"{markdown(done)}wrote {done.folder}: compare.md, compare.json, compare.png, and a run for each")


COMMANDS = (train_vqvae_command, train_prior_command, sharpen_command, compare_command)
