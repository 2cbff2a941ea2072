"""`gen evaluate`, `gen report`."""

from pathlib import Path
from typing import Unpack

import click

from pipeline.cli.flags import decoder_option, device_option, flags, quiet_option, say_result
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.sampling import DecoderName
from pipeline.errors import UsageError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.folders import FolderEvaluation, evaluate_folder
from pipeline.evaluation.report.report import report
from pipeline.evaluation.tables import figures_in_words, in_words, judge_in_words, side_by_side
from pipeline.reporting import reporter_for_command, table
from pipeline.runs.evaluation import evaluation_file
from pipeline.runs.layout import RunFolder
from pipeline.sampling.model import loaded


@click.command("evaluate")
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--data", help="Where the images are now, if stage 1 found them elsewhere.")
@click.option("--test-data", help="Images to test on, which no training has seen, in place of the run's test part.")
@click.option("--samples", help="A folder or .zip of images, of any program, to measure in place of a run's samples.")
@click.option("--reference", help="Real images to measure --samples against, without a run.")
@click.option("--image-size", help="Size that images of a --reference are cut to, as for gen train-vqvae.")
@device_option
@decoder_option
@quiet_option
@flags(EvaluateConfig)
def evaluate_command(
    runs: tuple[Path, ...],
    data: str | None,
    test_data: str | None,
    samples: str | None,
    reference: str | None,
    image_size: str | None,
    device: str | None,
    decoder: DecoderName | None,
    quiet: bool,
    **options: Unpack[EvaluateArguments],
) -> None:
    """Measure how good runs are (by default the newest): reconstructions, codes, samples, memory.

    All figures are of the test part, which no training looked at, and stand beside those of real images. A judge, a
    small classifier, is trained once on the training part of the data, and kept. Of several --guidance or
    --temperature the best by the validation part is measured on the test part; `gen sample --guidance best` uses it.
    """
    reporter = reporter_for_command(quiet)
    if samples is not None:
        if decoder is not None:
            raise UsageError(
                f"--decoder {decoder} makes a run's own samples, and --samples are made already; leave it out"
            )
        if len(runs) > 1:
            raise UsageError(f"--samples are measured against the data of one run; got {len(runs)}")
        run = runs[0] if runs else None
        judged = evaluate_folder(
            samples,
            run=run,
            reference=reference,
            image_size=image_size,
            data=data,
            test_data=test_data,
            device=device,
            reporter=reporter,
            **options,
        )
        say_result(_folder_in_words(samples, judged))
        return
    if reference is not None or image_size is not None:
        raise UsageError("--reference, and its --image-size, are what --samples are measured against; name those too")
    models = [loaded(run, "finished", device, decoder=decoder) for run in runs or (None,)]
    done = evaluate(*models, data=data, test_data=test_data, reporter=reporter, **options)
    named = {str(model.run.folder.path): one for model, one in zip(models, done, strict=True)}
    for name, one in named.items():
        say_result(f"{in_words(one, name)}\n\nwrote {evaluation_file(RunFolder(Path(name)), one.judge.number)}\n")
    if len(named) > 1:
        say_result(side_by_side(named))


def _folder_in_words(samples: str, judged: FolderEvaluation) -> str:
    facts = [("samples", samples), ("judge", judge_in_words(judged.judge))]
    facts += [("sets", f"{judged.images:,} images each, figures +- standard error")]
    figures = figures_in_words("against the test images", {"samples": judged.samples, "real images": judged.floor})
    return "\n\n".join([table(facts), figures, *(f"  {note}" for note in judged.notes)])


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


COMMANDS = (evaluate_command, report_command)
