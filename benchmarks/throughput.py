"""Training speed of stage 1 beside a plain loop over the same network, in one run.

    python -m benchmarks.throughput DATA [--threads 2] [--steps 400]

sonnet's architecture, batches of 128. `plain`: the same encoder and decoder as torch makes them (NCHW, float32), the
textbook's quantizer (all distances, one-hot products), Adam. `float32` and `bfloat16`: our training step. All three
take turns, 20 steps at a time. One JSON line each: images per second (median and quartiles over the turns) and the NMSE
of the last 100 training batches; then ratios, and where the time of our bfloat16 step goes.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import processes
from pipeline.config.data import DataConfig
from pipeline.config.training import Precision, TrainingConfig
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_images
from pipeline.data.splits import Split, pixel_variance, split
from pipeline.processes import keep_freed_memory
from pipeline.randomness import batch_indices
from pipeline.reporting import Silent
from pipeline.training.inputs.batches import ImageBatches
from pipeline.training.loop.trainer import Trainer
from stage1_vqvae import VQVAE, VQVAEConfig, VQVAETask
from stage1_vqvae.bottlenecks import Statistics
from stage1_vqvae.networks.strided import Decoder, Encoder
from stage1_vqvae.task import VQVAETaskOutput

BATCH, TURN = 128, 20
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
CONFIG = VQVAEConfig(encoder_kernel=3, code_dim=64)

Step = Callable[[int], float]  # does a step, returns its NMSE


class Textbook(nn.Module):
    """Quantizer as in the usual repositories: a distance matrix, one-hot codes, products with them."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through vectors and the commitment loss; moves the averages."""
        n, dim, height, width = outputs.shape
        flat = outputs.permute(0, 2, 3, 1).reshape(-1, dim)
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)
        one_hot = F.one_hot(distances.argmin(1), len(self.codebook)).float()
        quantized = (one_hot @ self.codebook).reshape(n, height, width, dim).permute(0, 3, 1, 2)
        with torch.no_grad():
            self.counts.mul_(0.99).add_(one_hot.sum(0), alpha=0.01)
            self.sums.mul_(0.99).add_(one_hot.T @ flat, alpha=0.01)
            self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        return outputs + (quantized - outputs).detach(), 0.25 * F.mse_loss(quantized.detach(), outputs)


def plain(images: ImageSet, parts: Split, variance: float) -> Step:
    """The loop that a tutorial would write."""
    torch.manual_seed(0)
    encoder, decoder = Encoder(CONFIG), Decoder(CONFIG, CONFIG.dimension)
    project, quantizer = nn.Conv2d(CONFIG.hidden, CONFIG.dimension, 1), Textbook(CONFIG.num_codes, CONFIG.dimension)
    modules = nn.ModuleList([encoder, project, decoder])
    optimizer = torch.optim.Adam(modules.parameters(), 3e-4)

    def step(number: int) -> float:
        chosen = parts.train[batch_indices(0, number, BATCH, len(parts.train)).items]
        target = torch.from_numpy(images.images[chosen]).float() / 255 - 0.5
        quantized, commitment = quantizer(project(encoder(target)))
        nmse = F.mse_loss(decoder(quantized), target) / variance
        optimizer.zero_grad()
        torch.autograd.backward([nmse + commitment])
        optimizer.step()
        return float(nmse.detach())

    return step


def ours(
    images: ImageSet, parts: Split, variance: float, precision: Precision, folder: Path, steps: int
) -> Trainer[Tensor, Statistics]:
    """A trainer as `gen train-vqvae` makes it."""
    torch.manual_seed(0)
    config = TrainingConfig(
        steps=steps, batch_size=BATCH, micro_batches=1, precision=precision, learning_rate=3e-4, schedule="constant"
    )
    trainer = Trainer(
        task=VQVAETask(VQVAE(CONFIG, variance)),
        data=ImageBatches(images, parts, False, 0),
        config=config,
        accelerator=processes.start(),
        folder=folder,
        reporter=Silent(),
        preview=lambda _: None,
    )
    trainer.start()
    return trainer


def _step(trainer: Trainer[Tensor, Statistics]) -> Step:
    return lambda number: float(trainer.train_step(number).metrics["nmse"])


def breakdown(trainer: Trainer[Tensor, Statistics], first: int) -> dict[str, float]:
    """Milliseconds of the parts of a step, medians over 20."""
    parts: dict[str, list[float]] = {name: [] for name in ("batch", "forward", "backward", "optimizer and codebook")}
    for number in range(first, first + TURN):
        marks = [perf_counter()]
        batch = trainer.training_batch(batch_indices(trainer.config.seed, number, BATCH, trainer.data.population))
        marks.append(perf_counter())
        with trainer.autocast():
            output: VQVAETaskOutput = trainer.module(batch, 0.5)
        marks.append(perf_counter())
        torch.autograd.backward([output.loss])
        marks.append(perf_counter())
        trainer.state.optimizer.step()
        trainer.state.optimizer.zero_grad()
        trainer.task.update(output.statistics, 0.5, torch.Generator())
        marks.append(perf_counter())
        for name, (start, end) in zip(parts, pairwise(marks), strict=True):
            parts[name].append(1000 * (end - start))
    return {name: round(statistics.median(values), 1) for name, values in parts.items()}


@click.command()
@click.argument("data")
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", default=400, show_default=True)
def main(data: str, threads: int, steps: int) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = DataConfig(data=data, validation=0.1, test=0.0)
    images = load_images(config)
    parts = split(len(images.images), config, 0)
    variance = pixel_variance(images, parts.train)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            precision: ours(images, parts, variance, precision, Path(folder), steps + TURN) for precision in PRECISIONS
        }
        runs = {"plain": plain(images, parts, variance)} | {name: _step(trainer) for name, trainer in trainers.items()}
        report(*_in_turn(runs, steps))
        print(json.dumps({"milliseconds of a bfloat16 step": breakdown(trainers["bfloat16"], steps)}))


def _in_turn(runs: dict[str, Step], steps: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images per second of each turn but the first, and the NMSE of each step."""
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    errors: dict[str, list[float]] = {name: [] for name in runs}
    for first in range(0, steps, TURN):
        for name, step in runs.items():
            started = perf_counter()
            errors[name] += [step(number) for number in range(first, first + TURN)]
            if first:
                speeds[name].append(TURN * BATCH / (perf_counter() - started))
    return speeds, errors


def report(speeds: dict[str, list[float]], errors: dict[str, list[float]]) -> None:
    """Print one line each, and the ratios."""
    for name, values in speeds.items():
        spread = [round(q) for q in statistics.quantiles(values)[::2]]
        line = {"run": name, "images/s": round(statistics.median(values)), "quartiles": spread}
        print(json.dumps({**line, "nmse": round(float(np.mean(errors[name][-100:])), 4)}), flush=True)
    ratios = {name: round(statistics.median(np.divide(speeds[name], speeds["plain"])), 2) for name in PRECISIONS}
    print(json.dumps({"over plain": ratios}), flush=True)


if __name__ == "__main__":
    main()
