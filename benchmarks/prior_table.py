"""The table of docs/priors.md, from trained runs.

    python -m benchmarks.prior_table RUN...

One row per run: what stage 1 keeps, and what its codes cost under its priors, all on the validation part.
"""

import json
import math
from pathlib import Path

import click

from pipeline.runs.layout import WEIGHTS, RunFolder
from pipeline.runs.saved import PriorRun, VQVAERun, read_config
from pipeline.runs.validation import read_validation

HEADER = ("run", "codes", "uniform, bits", "NMSE", "prior", "parameters", "minutes", "nats per code", "bits per image")


def row(run: RunFolder) -> tuple[str, ...]:
    """The cells of a run."""
    vqvae = read_config(run.vqvae, VQVAERun).model
    nmse = read_validation(run.vqvae).metrics.values["nmse"]
    priors = [read_config(run.prior(level), PriorRun) for level in range(vqvae.levels)]
    reached = [read_validation(run.prior(level)).metrics.values for level in range(vqvae.levels)]
    grids = " + ".join(f"{height}x{width}" for height, width in vqvae.grids)
    uniform = sum(height * width for height, width in vqvae.grids) * math.log2(vqvae.num_codes)
    return (
        run.path.name,
        f"{grids}, K = {vqvae.num_codes}",
        f"{uniform:.0f}",
        f"{nmse:.4f}",
        f"{priors[0].model.prior}, {priors[0].model.layers} layers of {priors[0].model.hidden}",
        " + ".join(f"{_parameters(run.prior(level)) / 1e6:.2f} M" for level in range(vqvae.levels)),
        f"{sum(prior.training.max_minutes or 0 for prior in priors):.1f}",
        ", ".join(f"{found['nats']:.3f}" for found in reached),
        f"{sum(found['bits_per_image'] for found in reached):.1f}",
    )


def _parameters(folder: Path) -> int:
    with (folder / WEIGHTS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(runs: tuple[Path, ...]) -> None:
    """Print the table in Markdown."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(row(RunFolder(run)) for run in runs)]
    click.echo("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    main()
