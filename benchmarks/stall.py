"""Are the codes in use from the start? Perplexity early in a training of the default length, for several seeds.

    python -m benchmarks.stall DATA [--steps 200] [--seeds 5]

Prints one JSON line per seed: the mean perplexity of the codes of a batch over the 100 steps before `steps`. There is
no test part.
"""

import json
import tempfile
from pathlib import Path

import click

from benchmarks.trainers import StopError, Until
from pipeline import train_vqvae
from pipeline.runs.layout import METRICS, RunFolder


@click.command()
@click.argument("data")
@click.option("--steps", default=200, show_default=True)
@click.option("--seeds", default=5, show_default=True)
def main(data: str, steps: int, seeds: int) -> None:
    """Measure and print."""
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                train_vqvae(out=folder, data=data, test=0.0, seed=seed, preset="base", reporter=Until(steps))
            except StopError:
                lines = (RunFolder(Path(folder)).vqvae / METRICS).read_text().splitlines()
        last = json.loads(lines[-1])
        print(json.dumps({"seed": seed, "step": last["step"], "perplexity": round(last["perplexity"], 1)}))


if __name__ == "__main__":
    main()
