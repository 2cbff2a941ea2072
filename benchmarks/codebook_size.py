"""What a larger codebook buys: use, perplexity and PSNR on held-out images, for several sizes and seeds.

    python -m benchmarks.codebook_size DATA [--sizes 512,2048,8192,16384] [--seeds 3] [--more 2] [--steps 1200]
        [--ema-decay 0.99] [--learning-rate 1e-3]

Prints one JSON line a training, then one a size: mean and spread (least to greatest) over its seeds. `--more` trains
the first size with so many further seeds.
"""

import json
import tempfile
from collections.abc import Iterator
from statistics import mean
from typing import Any

import click

from pipeline import train_vqvae

_SHOWN = ("code_use", "perplexity", "nmse", "psnr")


def _trainings(sizes: list[int], seeds: int, more: int) -> Iterator[tuple[int, int]]:
    """Pairs of (codes, seed): all sizes of a seed before the next seed."""
    yield from ((size, seed) for seed in range(seeds) for size in sizes)
    yield from ((sizes[0], seed) for seed in range(seeds, seeds + more))


def _measure(data: str, size: int, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = train_vqvae(out=folder, data=data, num_codes=size, seed=seed, batch_size=128, preset="base", **options)
    return {"codes": size, "seed": seed, **{name: round(done.held_out[name], 5) for name in _SHOWN}}


@click.command()
@click.argument("data")
@click.option("--sizes", default="512,2048,8192,16384", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--more", default=2, show_default=True)
@click.option("--steps", default=1200, show_default=True, help="Of 128 images.")
@click.option("--ema-decay", type=float, help="[default: that of the package]")
@click.option("--learning-rate", type=float, help="[default: that of the package]")
def main(data: str, sizes: str, seeds: int, more: int, **options: Any) -> None:
    """Train, measure and print."""
    found: dict[int, list[dict[str, Any]]] = {int(size): [] for size in sizes.split(",")}
    for size, seed in _trainings(list(found), seeds, more):
        found[size].append(_measure(data, size, seed, options))
        print(json.dumps(found[size][-1]), flush=True)
    for size, runs in found.items():
        summary = {name: [round(f([run[name] for run in runs]), 4) for f in (mean, min, max)] for name in _SHOWN}
        print(json.dumps({"codes": size, "seeds": len(runs), **summary}), flush=True)


if __name__ == "__main__":
    main()
