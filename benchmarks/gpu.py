"""What a GPU computes and how fast, in parts of at most eight minutes; on a machine without one, the same on the CPU.

    python -m benchmarks.gpu --part correctness [--out gpu.jsonl] [--minutes 8] [--toy]

Each line is one figure, a JSON object with the device's name, torch's version and the commit; it is printed, and
appended to `--out` the moment it is known. A part that takes longer than its minutes ends at the next figure and says
what it left out. Parts:
- `correctness`: codes of CPU and device, draws against a forward pass and over batch sizes, both stages resumed bit for
  bit with `--deterministic` (benchmarks/gpu_correctness.py);
- `tests`: the tests that compute on a GPU where there is one, and those that stand for one;
- `training`: images/s of both stages at the presets base and large, batches of 64 to 1,024; the share of the time in
  which the GPU computes; peak memory;
- `drawing`: images/s of maps of 8x8, 16x16 and 32x32, batches of 1 to 4,096, a draw beside one forward pass for each
  position and beside scoring; peak memory;
- `processes`: two processes beside one (benchmarks/scaling.py).
`--toy` makes everything tiny: it shows that all of it runs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_correctness import FULL, TOY, correctness
from benchmarks.sampling import MOST_POSITIONS, forward, networks, seconds
from benchmarks.scaling import in_turn
from benchmarks.trainers import CodeTrainer, ImageTrainer, finish, origin, trainer_of
from pipeline import processes
from pipeline.arithmetic import exact_products
from pipeline.config.presets import PresetName
from pipeline.sampling.matmul import fast_products
from pipeline.storage import JsonObject
from stage2_prior import Noise, SamplingOptions, draw_levels
from stage2_prior.config import PriorName

TESTS = (
    "tests/test_fake_cuda.py",
    "tests/pipeline/test_gpu_benchmark.py",
    "tests/pipeline/training/test_deterministic.py",
    "tests/pipeline/training/test_waiting.py",
)
TOY_TESTS = ("tests/pipeline/training/test_read_ahead.py",)
PRIORS: tuple[PriorName, ...] = ("pixelcnn", "transformer")


def tests(toy: bool) -> Iterator[JsonObject]:
    """How many tests passed. The suite computes on a GPU where there is one."""
    files = TOY_TESTS if toy else TESTS
    command = [sys.executable, "-m", "pytest", "-n", "0", *files]  # in one process: there is one device
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    yield {"exit_code": done.returncode, "said": done.stdout.strip().splitlines()[-1:], "files": files}


def training(toy: bool, folder: Path) -> Iterator[JsonObject]:
    """Both stages at their sizes, in growing batches."""
    presets: tuple[PresetName, ...] = ("tiny",) if toy else ("base", "large")
    side, batches = (8, (4,)) if toy else (32, (64, 128, 256, 512, 1024))
    for preset in presets:
        for stage in (1, 2):
            for batch in batches:
                yield {"preset": preset, **_trained(stage, preset, side, batch, folder, 2 if toy else 20)}


def _trained(stage: int, preset: PresetName, side: int, batch: int, folder: Path, steps: int) -> JsonObject:
    """The speed of one stage with batches of one size."""
    cell: JsonObject = {"stage": stage, "batch": batch, "side": side}
    try:
        trainer = trainer_of(stage, preset, side, {"batch_size": batch}, processes.start(), folder)
        speeds = [steps * batch / _seconds_of(trainer, range(first, first + steps)) for first in (0, steps, 2 * steps)]
        busy = busy_fraction(lambda: _seconds_of(trainer, range(3 * steps, 3 * steps + 5)), trainer.device)
    except torch.OutOfMemoryError:
        return {**cell, "error": "out of memory"}
    speed = round(median(speeds[1:]), 1)  # the first steps also choose kernels
    memory = _peak_mib(trainer.device)
    return {**cell, "precision": trainer.config.precision, "images_per_second": speed, "busy": busy, "mib": memory}


def _seconds_of(trainer: ImageTrainer | CodeTrainer, steps: Iterable[int]) -> float:
    finish(trainer.device)
    started = perf_counter()
    for step in steps:
        trainer.train_step(step)
    finish(trainer.device)
    return perf_counter() - started


def busy_fraction(work: Callable[[], float], device: torch.device) -> float | None:
    """The share of the time of `work`, which returns its seconds, in which a GPU computes; None without one.

    Measured with the profiler, which slows the CPU down: a lower bound.
    """
    if device.type != "cuda":
        work()
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        taken = work()
    kernels = [event.time_range for event in profiler.events() or () if event.device_type.name == "CUDA"]
    return round(covered((kernel.start, kernel.end) for kernel in kernels) / 1e6 / taken, 3)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of a union of intervals.

    >>> covered([(0, 2), (5, 6), (1, 3)])
    4.0
    """
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def _peak_mib(device: torch.device) -> float | None:
    """The most memory that torch had taken of a GPU since it was last asked."""
    if device.type != "cuda":
        return None
    most = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return round(most)


def drawing(toy: bool) -> Iterator[JsonObject]:
    """Maps of several sizes, in growing batches."""
    grids, batches = ((2,), (1, 3)) if toy else ((8, 16, 32), (1, 16, 64, 256, 1024, 2048, 4096))
    for kind in PRIORS:
        for grid in grids:
            for batch in batches:
                yield {"prior": kind, "grid": grid, "batch": batch, **_drawn(kind, grid, batch, toy)}


@torch.no_grad()
def _drawn(kind: PriorName, grid: int, batch: int, toy: bool) -> JsonObject:
    """Images drawn a second in one batch, as `gen sample` draws them, beside forward passes over as many maps."""
    device = processes.find_device(None)
    try:
        with exact_products(device), fast_products(device, batch, grid):
            sizes = {"layers": 2, "hidden": 16, "num_codes": 8} if toy else {}
            priors = [prior.to(device) for prior in networks(kind, grid, **sizes)]
            noise = Noise(0, torch.arange(batch, device=device))
            steppers = [prior.stepper(batch) for prior in priors]
            most = 1 if toy else 5
            taken = seconds(lambda: draw_levels(steppers, noise, None, SamplingOptions()), 2.0, most)
            [one_pass] = forward(priors, max(1, min(batch, MOST_POSITIONS // grid**2)))
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    drawn = median(taken) / batch
    return {
        "images_per_second": round(1 / drawn, 1),
        "full_forward_over_ours": round(one_pass * grid**2 / drawn, 1),
        "draw_over_score": round(drawn / one_pass, 2),
        "mib": _peak_mib(device),
    }


def several_processes(toy: bool) -> Iterator[JsonObject]:
    """Two processes beside one, a GPU for each; where there is one GPU, NCCL takes no second process."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        yield {"left_out": "two processes need two GPUs: NCCL takes one process a GPU"}
        return
    size = ["--steps=2", "--batch-size=4", "--preset=tiny"] if toy else ["--steps=50", "--batch-size=512"]
    yield from in_turn(["2x1"] if toy else ["1x4", "2x4"], 1 if toy else 3, size)


PARTS: dict[str, Callable[[bool, Path], Iterator[JsonObject]]] = {
    "correctness": lambda toy, folder: correctness(TOY if toy else FULL, folder),
    "tests": lambda toy, folder: tests(toy),
    "training": training,
    "drawing": lambda toy, folder: drawing(toy),
    "processes": lambda toy, folder: several_processes(toy),
}


@click.command()
@click.option("--part", required=True, type=click.Choice(list(PARTS)))
@click.option("--out", type=click.Path(path_type=Path), help="A file that lines are appended to.")
@click.option("--minutes", default=8.0, show_default=True, help="After which no further figure is begun.")
@click.option("--toy", is_flag=True, help="Everything tiny, to show that it runs.")
def main(part: str, out: Path | None, minutes: float, toy: bool) -> None:
    """Measure, print and append."""
    processes.keep_freed_memory()
    started, device = perf_counter(), processes.find_device(None)
    with tempfile.TemporaryDirectory() as folder:
        for line in PARTS[part](toy, Path(folder)):
            _write({"part": part, **line, **origin(device), **({"toy": True} if toy else {})}, out)
            if perf_counter() - started > 60 * minutes:
                _write({"part": part, "left_out": f"what comes after {minutes:g} minutes", **origin(device)}, out)
                break


def _write(line: JsonObject, out: Path | None) -> None:
    """On the screen, and at the end of the file: what was measured before a machine is taken away stays."""
    text = json.dumps(line)
    print(text, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    main()
