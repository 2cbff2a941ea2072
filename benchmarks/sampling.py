"""What drawing code maps costs, beside the ways it is usually done and beside scoring them.

    python -m benchmarks.sampling [--grids 8,16,32,64] [--batches 1,16,64,256] [--threads 2]

Prints one JSON line for each grid and batch, each measured in a process of its own: seconds an image of
- `full_forward`: one forward pass over the whole map for every position (one pass measured, times their number),
- `prefix`: one over the rows so far for every position (passes over some numbers of rows measured, the rest between),
- `ours`: the whole draw, noise included, as `gen sample` does it,
- `score`: one parallel forward pass, in the fastest of several forms;
- `weight_traffic`: reading the weights alone, as often as a batch needs them, at the speed of a sum over 16 MB;
then the ratios, achieved GFLOP/s beside those of one large matrix product, and how far memory rose while drawing.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

import click
import numpy as np
import torch

from pipeline.arithmetic import fast_products
from pipeline.processes import keep_freed_memory
from stage2_prior import Noise, PixelCNN, PixelCNNConfig, Warp, draw

CPU = torch.device("cpu")
CHUNKS = (1, 4, 16, 64, 256)
MOST_POSITIONS = 2**16  # of a forward pass; more do not make it faster


def network(grid: int) -> PixelCNN:
    """15 layers of 128 channels, 512 codes; its weights as they are initialised."""
    torch.manual_seed(0)
    config = PixelCNNConfig(height=grid, width=grid, num_codes=512, layers=15, hidden=128, first_kernel=7, head=256)
    return PixelCNN(config).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def seconds(work: Callable[[], object], at_least: float = 1.0, most: int = 20) -> list[float]:
    """Durations of repeated calls, after one that does not count where calls are short."""
    taken: list[float] = []
    while len(taken) < most and sum(taken) < at_least:
        started = perf_counter()
        work()
        taken.append(perf_counter() - started)
        if len(taken) == 1 and taken[0] < at_least and most > 1:
            work()
    return taken


def forward(prior: PixelCNN, images: int, rows: int) -> float:
    """Median seconds an image of a forward pass over the first rows of maps."""
    codes = torch.randint(512, (images, rows, prior.config.width))
    return statistics.median(seconds(lambda: prior(codes, None), 0.5)) / images


def prefix(prior: PixelCNN, images: int) -> float:
    """Seconds an image when every position takes a pass over the rows so far: by trapezes between measured rows."""
    grid = prior.config.height
    rows = sorted({1, grid // 4, grid // 2, grid})
    measured = [forward(prior, images, count) for count in rows]
    return float(np.interp(range(1, grid + 1), rows, measured).sum()) * grid


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cell(grid: int, batch: int, threads: int) -> dict[str, object]:
    """Measure one grid and batch in this process."""
    prior = network(grid)
    noise = Noise(0, torch.arange(batch))
    before = peak_bytes()
    stepper = prior.stepper(batch)
    stepper.begin(None)
    ours = sorted(t / batch for t in seconds(lambda: draw(stepper, noise, Warp()), 3.0))
    memory = peak_bytes() - before
    passes = {
        images: forward(prior, images, grid)
        for images in CHUNKS
        if images <= batch and images * grid * grid <= max(MOST_POSITIONS, grid * grid)
    }
    images = min(passes, key=lambda size: passes[size])
    score, drawn = passes[images], statistics.median(ours)
    factor = torch.randn(2048, 2048)
    gemm = 2 * 2048**3 / min(seconds(lambda: factor @ factor))
    read = min(seconds(lambda: factor.sum())) / factor.nbytes  # seconds a byte: it fits no cache of a core
    weights = sum(p.numel() for name, p in prior.named_parameters() if p.ndim == 4)
    in_rows = sum(p.numel() for name, p in prior.named_parameters() if "vertical.w" in name or "link.w" in name)
    full, rows_so_far = score * grid**2, prefix(prior, images)
    return {
        "grid": grid,
        "batch": batch,
        "device": "cpu",
        "threads": threads,
        "threads_drawing": torch.get_num_threads(),
        "full_forward": round(full, 4),
        "prefix": round(rows_so_far, 4),
        "ours": round(drawn, 6),
        "ours_spread": [round(ours[0], 6), round(ours[-1], 6)],
        "score": round(score, 6),
        "score_batch": images,
        "draw_over_score": round(drawn / score, 3),
        "full_forward_over_ours": round(full / drawn, 1),
        "prefix_over_ours": round(rows_so_far / drawn, 1),
        "microseconds_a_code": round(1e6 * drawn / grid**2, 2),
        "weight_traffic": round(4 * read * (in_rows * grid + (weights - in_rows) * grid**2) / batch, 6),
        "gflops": round(2e-9 * weights * grid**2 / drawn, 1),
        "gemm_gflops": round(gemm / 1e9, 1),
        "megabytes": round(memory / 2**20, 1),
        "extrapolated": ["full_forward", "prefix"],
    }


@click.command()
@click.option("--grids", default="8,16,32,64", show_default=True)
@click.option("--batches", default="1,16,64,256", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
@torch.no_grad()
def main(grids: str, batches: str, threads: int, here: bool) -> None:
    """Measure and print."""
    if here:
        keep_freed_memory()
        torch.set_num_threads(threads)
        with fast_products(CPU, int(batches), int(grids)):
            result = cell(int(grids), int(batches), threads)
        print(json.dumps(result), flush=True)
        return
    for grid in grids.split(","):
        for batch in batches.split(","):
            command = [sys.executable, "-m", "benchmarks.sampling", "--here", "--grids", grid, "--batches", batch]
            subprocess.run([*command, "--threads", str(threads)], check=True)


if __name__ == "__main__":
    main()
