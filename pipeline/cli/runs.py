"""`gen info`, `gen status`, `gen pull`, `gen push`."""

import json
from dataclasses import asdict
from pathlib import Path

import click
import torch

from pipeline.cli.flags import quiet_option, run_argument, run_option, say_result
from pipeline.data.splits import load_split
from pipeline.errors import UsageError
from pipeline.reporting import reporter_for_command, table
from pipeline.runs.evaluation import read_evaluation
from pipeline.runs.layout import CHECKPOINTS, RUNS, SHARP, SPLIT, RunFolder, is_finished
from pipeline.runs.loading import LoadedPrior, LoadedVQVAE, load_prior, load_vqvae
from pipeline.runs.opening import Run, open_run
from pipeline.runs.overview import in_words, overview, runs_in
from pipeline.runs.published.pull import pull
from pipeline.runs.published.push import push
from pipeline.runs.saved import PriorRun, codes_in_words, images_in_words, network_in_words
from pipeline.runs.validation import read_validation
from pipeline.sampling.options import differing_hashes
from pipeline.training.launch import resume_command
from pipeline.training.loop.checkpoint import list_checkpoints, step_of


@click.command("info")
@run_argument
def info_command(run: Path | None) -> None:
    """Say what a run (by default the newest) holds, and check its files."""
    folder = None if run is None else RunFolder(run)
    if folder is not None and folder.contains_run() and not is_finished(folder.vqvae):
        say_result(table([("run", str(folder.path)), *_unfinished(folder, folder.vqvae)]))
        return
    opened = open_run(run, "finished")
    folder, vqvae = opened.folder, load_vqvae(opened, torch.device("cpu"))
    rows = [("run", opened.called), *_vqvae(folder, vqvae), *_decoder(opened, vqvae.decoder_sha256)]
    loaded = []
    for level, prior in enumerate(opened.priors):
        if prior is None:
            rows += _unfinished(folder, folder.prior(level))
        else:  # weights that fit, and belong to this stage 1
            loaded.append(load_prior(folder, prior, vqvae.codes_sha256, torch.device("cpu")))
            rows += _prior(folder, prior)
    rows += _evaluation(folder, vqvae, loaded)
    samples = sorted(path.name for path in folder.samples.glob("[!.]*"))
    say_result(table([*rows, ("samples", ", ".join(samples) or "none")]))


def _vqvae(folder: RunFolder, loaded: LoadedVQVAE) -> list[tuple[str, str]]:
    config, parts = loaded.config, load_split(folder.vqvae / SPLIT)
    model, training, data = config.model, config.training, config.data
    tested = f"{len(parts.test):,} test" if data.test_data is None else f"test part {data.test_data}"
    return [
        ("vqvae", f"{training.steps:,} steps of {training.batch_size} images, verified"),
        ("  data", f"{data.data}, {len(config.class_names)} classes"),
        ("  parts", f"{len(parts.train):,} training, {len(parts.validation):,} validation, {tested}"),
        ("  images", images_in_words(model)),
        ("  codes", f"{codes_in_words(model)}, codes_sha256 {loaded.codes_sha256[:12]}"),
        *([] if config.init is None else [("  begun from", str(config.init))]),
        *read_validation(folder.vqvae).metrics.rows(),
    ]


def _decoder(run: Run, decoder_sha256: str) -> list[tuple[str, str]]:
    """The decoder that is used, what the sharp one reaches, and one that has been begun."""
    stage, found = run.folder.decoder(SHARP), [("  decoder", f"{run.decoder}, decoder_sha256 {decoder_sha256[:12]}")]
    if run.sharp is None:
        return found + _unfinished(run.folder, stage)
    return [*found, *read_validation(stage).metrics.rows()]


def _prior(folder: RunFolder, prior: PriorRun) -> list[tuple[str, str]]:
    reached = read_validation(folder.prior(prior.level))
    steps = f"{reached.steps_done:,} steps of {prior.training.batch_size} maps, verified"
    return [
        (f"prior/{prior.level}", f"{network_in_words(prior.model)}, {steps}"),
        ("  validation", reached.metrics.brief()),
        *([] if prior.guidance == 1 else [("  guidance", f"{prior.guidance:g} by default")]),
    ]


def _evaluation(folder: RunFolder, vqvae: LoadedVQVAE, priors: list[LoadedPrior]) -> list[tuple[str, str]]:
    """What `gen sample --guidance best` draws with, where there is an evaluation."""
    evaluation = read_evaluation(folder)
    if evaluation is None:
        return []
    best = "no settings compared" if evaluation.best is None else f"best with {evaluation.best}"
    differing = differing_hashes(evaluation, vqvae, priors)
    return [("evaluation", f"of another model: {'; '.join(differing)}" if differing else best)]


def _unfinished(folder: RunFolder, stage: Path) -> list[tuple[str, str]]:
    """What there is of a stage that has been begun; nothing of one that has not."""
    if not stage.exists():
        return []
    checkpoints = list_checkpoints(stage / CHECKPOINTS)
    saved = f"saved after step {step_of(checkpoints[-1]):,}" if checkpoints else "nothing saved yet"
    return [(str(stage.relative_to(folder.path)), f"unfinished, {saved}; go on with `{resume_command(stage)}`")]


@click.command("status")
@click.argument("folder", required=False, default=RUNS, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run.")
def status_command(folder: Path, as_json: bool) -> None:
    """Say how far the runs in FOLDER (by default runs/), or the run FOLDER, are; also while they are at work."""
    paths = runs_in(folder)
    if not paths:
        raise UsageError(f"there is no run in {folder.resolve()}; name a run, or a folder of runs")
    runs = [overview(path) for path in paths]
    if as_json:
        for run in runs:
            say_result(json.dumps(asdict(run), default=lambda time: time.isoformat()))
        return
    names = [path.name if path == folder else str(path.relative_to(folder)) for path in paths]
    rows = [(name, *in_words(run)) for name, run in zip(names, runs, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width)
        say_result("  ".join(cells).rstrip())


@click.command("pull")
@click.argument("name", metavar="USER/NAME")
@click.option("--out", type=click.Path(path_type=Path), help="New run folder [default: runs/NAME].")
@click.option("--revision", help="A branch, a tag or a commit [default: the newest].")
@quiet_option
def pull_command(name: str, out: Path | None, revision: str | None, quiet: bool) -> None:
    """Copy a run of the Hugging Face Hub, or pretrained:digits, into a folder of your own.

    Each file is checked by its hash. HF_ENDPOINT names another server.
    """
    run = pull(name, out, revision=revision, reporter=reporter_for_command(quiet))
    say_result(f"wrote {run}; next: gen info {run}")


@click.command("push")
@click.argument("repository", metavar="USER/NAME")
@run_option
@click.option("--private", is_flag=True, help="Make the repository for you alone, if it is new.")
@quiet_option
def push_command(repository: str, run: Path | None, private: bool, quiet: bool) -> None:
    """Publish a run on the Hugging Face Hub, where `gen pull USER/NAME` finds it.

    Log in with `hf auth login`, or set HF_TOKEN. This has been tried against a server of our own that speaks the Hub's
    protocol, and not yet against the Hub itself.
    """
    address = push(run, repository, private=private, reporter=reporter_for_command(quiet))
    say_result(f"published at {address}; next: gen pull {repository}")


COMMANDS = (info_command, status_command, pull_command, push_command)
