"""The table of docs/priors.md, from trained runs.

    python -m benchmarks.prior_table RUN...

A row a run: what stage 1 keeps, and what its codes cost under its priors, all held out.
"""

import json
import math
from pathlib import Path

import click

from pipeline.run import PriorRun, RunFolder, VQVAERun, read_config

HEADER = ("run", "codes", "uniform, bits", "NMSE", "prior", "parameters", "minutes", "nats a code", "bits an image")


def row(run: RunFolder) -> tuple[str, ...]:
    """The cells of a run."""
    vqvae = read_config(run.vqvae, VQVAERun).model
    kept = json.loads((run.vqvae / "held_out.json").read_text())
    priors = [read_config(run.prior(level), PriorRun) for level in range(vqvae.levels)]
    held_out = [json.loads((run.prior(level) / "held_out.json").read_text()) for level in range(vqvae.levels)]
    grids = " + ".join(f"{height}x{width}" for height, width in vqvae.grids)
    uniform = sum(height * width for height, width in vqvae.grids) * math.log2(vqvae.num_codes)
    return (
        run.path.name,
        f"{grids}, K = {vqvae.num_codes}",
        f"{uniform:.0f}",
        f"{kept['nmse']:.4f}",
        f"{priors[0].model.prior}, {priors[0].model.layers} layers of {priors[0].model.hidden}",
        " + ".join(f"{_parameters(run.prior(level)) / 1e6:.2f} M" for level in range(vqvae.levels)),
        f"{sum(prior.training.max_minutes or 0 for prior in priors):.1f}",
        ", ".join(f"{found['nats']:.3f}" for found in held_out),
        f"{sum(found['bits_an_image'] for found in held_out):.1f}",
    )


def _parameters(folder: Path) -> int:
    with (folder / "model.safetensors").open("rb") as file:
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
