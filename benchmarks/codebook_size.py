"""What a larger codebook buys: usage, perplexity and PSNR on the validation part, for several sizes and seeds.

    python -m benchmarks.codebook_size DATA [--sizes 512,2048,8192,16384] [--seeds 3] [--more 2] [--steps 1200]
        [--ema-decay 0.99] [--learning-rate 1e-3]

Prints one JSON line per training, then one per size: mean, least and greatest over its seeds. `--more` trains the first
size with so many further seeds. There is no test part: a tenth of the images is for validation, all others for
training.
"""

import json
import tempfile
from collections.abc import Iterator
from statistics import mean
from typing import Unpack

import click

from pipeline import train_vqvae
from pipeline.config.arguments import VQVAEArguments

SHOWN = ("codebook_usage", "perplexity", "nmse", "psnr")


def _trainings(sizes: list[int], seeds: int, more: int) -> Iterator[tuple[int, int]]:
    """Pairs of (codes, seed): all sizes of a seed before the next seed."""
    yield from ((size, seed) for seed in range(seeds) for size in sizes)
    yield from ((sizes[0], seed) for seed in range(seeds, seeds + more))


def _measure(size: int, seed: int, options: VQVAEArguments) -> dict[str, float]:
    arguments: VQVAEArguments = {
        **options,
        "objective": "nmse",
        "num_codes": size,
        "seed": seed,
        "batch_size": 128,
        "test": 0.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        reached = train_vqvae(out=folder, preset="base", **arguments).validation.named()
    return {"codes": size, "seed": seed, **{name: round(reached[name], 5) for name in SHOWN}}


@click.command()
@click.argument("data")
@click.option("--sizes", default="512,2048,8192,16384", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--more", default=2, show_default=True)
@click.option("--steps", default=1200, show_default=True, help="Of 128 images.")
@click.option("--ema-decay", type=float, help="[default: that of the package]")
@click.option("--learning-rate", type=float, help="[default: that of the package]")
def main(sizes: str, seeds: int, more: int, **options: Unpack[VQVAEArguments]) -> None:
    """Train, measure and print."""
    found: dict[int, list[dict[str, float]]] = {int(size): [] for size in sizes.split(",")}
    for size, seed in _trainings(list(found), seeds, more):
        found[size].append(_measure(size, seed, options))
        print(json.dumps(found[size][-1]), flush=True)
    for size, runs in found.items():
        summary = {name: [round(f([run[name] for run in runs]), 4) for f in (mean, min, max)] for name in SHOWN}
        print(json.dumps({"codes": size, "seeds": len(runs), **summary}), flush=True)


if __name__ == "__main__":
    main()
