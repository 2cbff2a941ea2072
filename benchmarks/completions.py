"""The picture docs/completions.png: images of the validation part, what is kept of them, and how a run completes them.

    python -m benchmarks.completions RUN DATA OUT.png [--keep top:0.5] [--rows 6] [--n 8]

One row per image: itself, the part kept (the rest in grey), then completions, drawn at temperature 1 without naming its
class.
"""

from pathlib import Path

import click
import numpy as np
import torch

from pipeline import complete, load
from pipeline.config.data import DataConfig
from pipeline.data import pixels
from pipeline.data.loading import load_images
from pipeline.data.splits import load_split
from pipeline.runs.layout import SPLIT, RunFolder


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--keep", default="top:0.5", show_default=True)
@click.option("--rows", default=6, show_default=True)
@click.option("--n", default=8, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(run: Path, data: str, out: Path, keep: str, rows: int, n: int, threads: int) -> None:
    """Draw and write."""
    torch.set_num_threads(threads)
    config = load(run).vqvae.config.model
    validation = load_split(RunFolder(run).vqvae / SPLIT).validation
    chosen = np.random.default_rng(0).permutation(validation)[:rows]  # images come folder by folder
    colour: pixels.Colour = "grey" if config.channels == 1 else "colour"
    size = f"{config.height}x{config.width}"
    shown = []
    for image in load_images(DataConfig(data=data, image_size=size, colour=colour)).images[chosen]:
        done = complete(run, image.copy(), keep, n=n)
        kept = np.where(done.kept, image, 128).astype(np.uint8)
        shown.append(np.concatenate([image[None], kept[None], done.images.numpy()]))
    picture = pixels.grid(np.concatenate(shown), 2 + n)
    picture.resize((2 * picture.width, 2 * picture.height), pixels.NEAREST).save(out)


if __name__ == "__main__":
    main()
