"""Does `gen score` rank images of another kind above those of the validation part?

    python -m benchmarks.unusual RUN mnist.zip cifar10.zip [--n 1000]

RUN was trained on the digits of mnist.zip. Prints one JSON line per kind: the area under the ROC curve of bits as a
detector of that kind among validation digits, and the median bits of both. Kinds: the photographs of cifar10.zip in
grey, the same validation digits upside down (turned by 180 degrees), and their negatives.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from pipeline import load, score
from pipeline.config.data import DataConfig
from pipeline.data.loading import load_images
from pipeline.data.splits import load_split
from pipeline.runs.layout import SPLIT, RunFolder


def area(usual: Tensor, unusual: Tensor) -> float:
    """The chance that an unusual image costs more than a usual one; a tie counts half."""
    difference = unusual[:, None] - usual[None]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


@click.command()
@click.argument("run")
@click.argument("digits")
@click.argument("photographs")
@click.option("--n", default=1000, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(run: str, digits: str, photographs: str, n: int, threads: int) -> None:
    """Score all kinds and print."""
    torch.set_num_threads(threads)
    config = load(run).vqvae.config
    size = f"{config.model.height}x{config.model.width}"
    validation = load_split(RunFolder(Path(run)).vqvae / SPLIT).validation
    chosen = np.random.default_rng(0).permutation(validation)[:n]  # images come folder by folder
    images = load_images(DataConfig(data=digits, image_size=size, colour="grey")).images[chosen]
    every = load_images(DataConfig(data=photographs, image_size=size, colour="grey")).images
    other = every[np.random.default_rng(1).permutation(len(every))[:n]]
    usual = score(run, images.copy()).bits
    kinds = {"photographs": other.copy(), "upside down": images[:, :, ::-1, ::-1].copy(), "negatives": 255 - images}
    for kind, shown in kinds.items():
        bits = score(run, np.ascontiguousarray(shown)).bits
        medians = {"median_bits": round(float(bits.median()), 1), "validation": round(float(usual.median()), 1)}
        print(json.dumps({"kind": kind, "n": len(bits), "area": round(area(usual, bits), 4), **medians}), flush=True)


if __name__ == "__main__":
    main()
