"""How often does a draw depend on the batch it is made in? The same images are drawn in batches of different sizes.

    python -m benchmarks.invariance RUN [--n 512]

Prints one JSON line per precision: the draws compared, the images of which a draw differs (only the first such draw of
an image counts: those after it are conditioned on it), and their rate per million draws.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from pipeline import load
from pipeline.config.sampling import FloatPrecision
from pipeline.storage import JsonObject

PRECISIONS: tuple[FloatPrecision, ...] = ("float64", "float32")


def codes(run: Path, n: int, batch_size: int, precision: FloatPrecision) -> torch.Tensor:
    """All codes of images 0 to n - 1, one row per image."""
    levels = load(run, precision=precision).sample(n, batch_size=batch_size).codes
    return torch.cat([level.flatten(1) for level in levels], 1)


def differences(run: Path, n: int, batch_sizes: Sequence[int], precision: FloatPrecision) -> JsonObject:
    """How often the draws of the first batch size differ from those of the others."""
    first, *others = (codes(run, n, size, precision) for size in batch_sizes)
    images = sum(int((first != other).any(1).sum()) for other in others)
    draws = first.numel() * len(others)
    return {"draws": draws, "first_differences": images, "per_million": 1e6 * images / draws}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--n", default=512, show_default=True)
@click.option("--batch-sizes", default="1,7,64,256", show_default=True)
def main(run: Path, n: int, batch_sizes: str) -> None:
    """Measure and print."""
    for precision in PRECISIONS:
        result = differences(run, n, [int(size) for size in batch_sizes.split(",")], precision)
        print(json.dumps({"precision": precision, "batch_sizes": batch_sizes, "n": n, **result}))


if __name__ == "__main__":
    main()
