"""What drawing code maps costs, beside the ways it is usually done and beside scoring them.

    python -m benchmarks.sampling [--kind pixelcnn] [--grids 8,16,32,64] [--batches 1,16,64,256] [--threads 2]

Kinds: pixelcnn, pixelsnail and transformer of 15 layers, and two-levels: a PixelCNN on half the grid, and one beneath
it on the whole. Prints one JSON line for each grid and batch, each measured in a process of its own: seconds per image
of
- `full_forward`: one forward pass over the whole map for every position (one pass measured, times their number),
- `prefix`: one over the rows so far for every position (passes over some numbers of rows measured, the rest between;
  of one level alone),
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
from functools import partial
from time import perf_counter
from typing import Literal, TypeAlias

import click
import numpy as np
import torch

from pipeline.processes import keep_freed_memory
from pipeline.sampling.matmul import fast_products
from pipeline.storage import JsonObject
from stage2_prior import Noise, Prior, PriorConfig, SamplingOptions, draw_levels, make_prior
from stage2_prior.config import PriorName

CPU = torch.device("cpu")
Kind: TypeAlias = PriorName | Literal["two-levels"]
KINDS: tuple[Kind, ...] = ("pixelcnn", "pixelsnail", "transformer", "two-levels")
CHUNKS = (1, 4, 16, 64, 256)
MOST_POSITIONS = 2**16  # of a forward pass; more do not make it faster


def networks(kind: Kind, grid: int, layers: int = 15, hidden: int = 128, num_codes: int = 512) -> list[Prior]:
    """The prior of each level, its weights as they are initialised."""
    torch.manual_seed(0)
    sizes = [grid // 2, grid] if kind == "two-levels" else [grid]
    made = []
    for level, size in enumerate(sizes):
        config = PriorConfig(
            prior="pixelcnn" if kind == "two-levels" else kind,
            height=size,
            width=size,
            num_codes=num_codes,
            coarser=(num_codes,) * level,
            layers=layers,
            hidden=hidden,
            first_kernel=7,
            head=2 * hidden,
        )
        made.append(make_prior(config).to(memory_format=torch.channels_last).eval().requires_grad_(False))
    return made


def seconds(work: Callable[[], object], at_least: float = 1.0, most: int = 20) -> list[float]:
    """Durations of repeated calls after an uncounted first one; if that takes over 5 s + `at_least`, its own alone."""
    taken: list[float] = []
    first = _once(work)
    if first > 5 + at_least:
        return [first]
    while len(taken) < most and sum(taken) < at_least:
        taken.append(_once(work))
    return taken


def _once(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - started


def forward(priors: list[Prior], images: int, rows: int | None = None) -> list[float]:
    """Median seconds per image of a forward pass of each level, over the first rows of maps."""
    configs, device = [prior.config for prior in priors], next(priors[0].parameters()).device
    maps = [torch.randint(own.num_codes, (images, own.height, own.width), device=device) for own in configs]
    works = [partial(prior, maps[level][:, :rows], None, maps[:level]) for level, prior in enumerate(priors)]
    return [statistics.median(seconds(work, 0.5)) / images for work in works]


def prefix(prior: Prior, images: int) -> float:
    """Seconds per image when every position takes a pass over the rows so far: interpolated between measured rows."""
    grid = prior.config.height
    rows = sorted({1, grid // 4, grid // 2, grid})
    measured = [forward([prior], images, count)[0] for count in rows]
    return float(np.interp(range(1, grid + 1), rows, measured).sum()) * grid


def _weights(prior: Prior) -> tuple[int, int]:
    """How many weights are read once per row, those of kernels above it; and how many once per position."""
    in_rows = at_positions = 0
    for name, weight in prior.named_parameters():
        if weight.ndim not in (2, 4) or name.startswith(("coarser", "embedding")):
            continue
        rows, height = 0, weight.shape[2] if weight.ndim == 4 else 1
        if any(part in name for part in ("vertical.", "link.", "condition_proj.", "above.")):
            rows = height
        elif "first.weight" in name or "second.weight" in name:  # PixelSNAIL's corners, of which the last row is here
            rows = height - 1
        in_rows += weight.numel() * rows // height
        at_positions += weight.numel() * (height - rows) // height
    return in_rows, at_positions


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cell(kind: Kind, grid: int, batch: int, threads: int) -> JsonObject:
    """Measure one grid and batch in this process."""
    priors = networks(kind, grid)
    noise = Noise(0, torch.arange(batch))
    before = peak_bytes()
    steppers = [prior.stepper(batch) for prior in priors]
    ours = sorted(t / batch for t in seconds(lambda: draw_levels(steppers, noise, None, SamplingOptions()), 3.0))
    memory = peak_bytes() - before
    passes = {
        images: forward(priors, images)
        for images in CHUNKS
        if images <= batch and images * grid * grid <= max(MOST_POSITIONS, grid * grid)
    }
    images = min(passes, key=lambda size: sum(passes[size]))
    score, drawn = sum(passes[images]), statistics.median(ours)
    positions = [prior.config.height * prior.config.width for prior in priors]
    full = sum(seconds * count for seconds, count in zip(passes[images], positions, strict=True))
    rows_so_far = prefix(priors[0], images) if len(priors) == 1 else None
    factor = torch.randn(2048, 2048)
    gemm = 2 * 2048**3 / min(seconds(lambda: factor @ factor))
    read = min(seconds(lambda: factor.sum())) / factor.nbytes  # seconds per byte: it fits no cache of a core
    # Coarser levels are read once for a map, and the cost of attention grows with the map; neither is counted here.
    products = [count * sum(_weights(prior)) for prior, count in zip(priors, positions, strict=True)]
    reads = sum(
        size[0] * prior.config.height + size[1] * count
        for prior, count in zip(priors, positions, strict=True)
        for size in [_weights(prior)]
    )
    return {
        "kind": kind,
        "grid": grid,
        "batch": batch,
        "device": "cpu",
        "threads": threads,
        "threads_drawing": torch.get_num_threads(),
        "full_forward": round(full, 4),
        "prefix": rows_so_far and round(rows_so_far, 4),
        "ours": round(drawn, 6),
        "ours_spread": [round(ours[0], 6), round(ours[-1], 6)],
        "score": round(score, 6),
        "score_batch": images,
        "draw_over_score": round(drawn / score, 3),
        "full_forward_over_ours": round(full / drawn, 1),
        "prefix_over_ours": rows_so_far and round(rows_so_far / drawn, 1),
        "microseconds_per_code": round(1e6 * drawn / sum(positions), 2),
        "weight_traffic": round(4 * read * reads / batch, 6),
        "gflops": round(2e-9 * sum(products) / drawn, 1),
        "gemm_gflops": round(gemm / 1e9, 1),
        "megabytes": round(memory / 2**20, 1),
        "extrapolated": ["full_forward", "prefix"],
    }


@click.command()
@click.option("--kind", default="pixelcnn", show_default=True, type=click.Choice(KINDS))
@click.option("--grids", default="8,16,32,64", show_default=True)
@click.option("--batches", default="1,16,64,256", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
@torch.no_grad()
def main(kind: Kind, grids: str, batches: str, threads: int, here: bool) -> None:
    """Measure and print."""
    if here:
        keep_freed_memory()
        torch.set_num_threads(threads)
        with fast_products(CPU, int(batches), int(grids)):
            result = cell(kind, int(grids), int(batches), threads)
        print(json.dumps(result), flush=True)
        return
    for grid in grids.split(","):
        for batch in batches.split(","):
            command = [sys.executable, "-m", "benchmarks.sampling", "--here", "--grids", grid, "--batches", batch]
            subprocess.run([*command, "--kind", kind, "--threads", str(threads)], check=True)


if __name__ == "__main__":
    main()
