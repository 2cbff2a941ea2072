"""Forty images learned from, in a stage 1 of random weights and in one begun from that of other images.

    python -m benchmarks.initial FOLDER

The embedded digits: a run of preset tiny learns 0 to 4 in 600 steps; then 40 images of 5 to 9 are learned from, with
`init` and without. Prints one JSON line each: steps, and the NMSE of 500 other images of 5 to 9. Runs are written into
FOLDER.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pipeline import Silent, load, train_vqvae
from pipeline.config.data import DataConfig
from pipeline.data.loading import load_images

_FEW, _TESTED = 40, 500


def error(run: Path, images: np.ndarray) -> float:
    """The squared error of reconstructions over the variance of the images."""
    original = torch.from_numpy(images)
    restored = load(run).reconstruct(original)
    return float((restored.float() - original.float()).square().mean() / original.float().var())


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Train and measure."""
    digits = load_images(DataConfig(), reporter=Silent())
    assert digits.labels is not None
    others = digits.images[digits.labels >= 5]
    others = others[np.random.default_rng(0).permutation(len(others))]
    few, tested = others[:_FEW], others[_FEW : _FEW + _TESTED]
    many = train_vqvae(
        out=folder / "many", images=digits.images[digits.labels < 5], preset="tiny", steps=600, reporter=Silent()
    ).run
    click.echo(json.dumps({"begun": "as it is", "steps": 0, "nmse": round(error(many, tested), 5)}))
    begun: dict[str, dict[str, Any]] = {"random": {"preset": "tiny"}, "init": {"init": many, "batch_size": 32}}
    for steps in (100, 300, 600):
        for name, how in begun.items():
            run = train_vqvae(out=folder / f"{name}-{steps}", images=few, steps=steps, reporter=Silent(), **how).run
            click.echo(json.dumps({"begun": name, "steps": steps, "nmse": round(error(run, tested), 5)}))


if __name__ == "__main__":
    main()
