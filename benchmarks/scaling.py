"""What several processes gain over one, and what they say to each other in a step.

    python -m benchmarks.scaling [--layouts 1x2,2x1,1x1,4x1] [--rounds 3] [--steps 20] [--batch-size 64] [--preset base]

A layout is PROCESSESxTHREADS; each trains both stages on batches of the same size, over all processes together, in
rounds in which the layouts take turns. One JSON line for each round, layout and stage: images per second, and bytes
that a process sends in a step, of gradients and in all, beside the least possible. Then for each stage and layout the
median over the rounds of its speed over that of the first layout, and the range. With GPUs (one to a process) threads
are those of the CPU beside them.

Bytes are those of a ring: an all-reduce of N bytes over p processes sends 2 (p - 1) / p N from each (Patarasuk & Yuan
2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"), and none can send less; gathering what
each has sends (p - 1) N, a broadcast N. The least possible are the gradients and what the codebook needs: its sums, and
the samples that dead codes may move to.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import click
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.trainers import CodeTrainer, ImageTrainer, finish, origin, trainer_of
from pipeline import processes
from pipeline.config.presets import PresetName
from pipeline.storage import JsonObject

SIDE = 32
_SENT: dict[str, Callable[[int], float]] = {  # bytes that a process sends for a byte of its own, of p processes
    "all_reduce": lambda p: 2 * (p - 1) / p,
    "all_gather": lambda p: p - 1.0,
    "all_gather_into_tensor": lambda p: p - 1.0,
    "_broadcast_coalesced": lambda p: 1.0,
}
_OWN = {"all_reduce": 0, "all_gather": 1, "all_gather_into_tensor": 1, "_broadcast_coalesced": 1}  # which argument


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Bytes that this process hands to each operation of torch.distributed meanwhile."""
    found: Counter[str] = Counter()

    def counting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            own = arguments[_OWN[name]]
            found[name] += sum(tensor.nbytes for tensor in (own if isinstance(own, list) else [own]))
            return work(*arguments, **options)

        return called

    with ExitStack() as stack:
        for name in _SENT:
            work = getattr(dist, name)
            stack.enter_context(patch.object(dist, name, counting(name, work)))
        yield found


def count_gradients(trainer: ImageTrainer | CodeTrainer) -> Counter[str]:
    """From here on the bytes of gradients that are added up over the processes, by `all_reduce`."""
    found: Counter[str] = Counter()

    def hook(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        found["gradients"] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    if isinstance(trainer.wrapped, DistributedDataParallel):
        trainer.wrapped.register_comm_hook(trainer.wrapped.process_group, hook)
    return found


def measured(stage: int, preset: PresetName, batch_size: int, steps: int, folder: Path) -> JsonObject:
    """One stage in the processes that this one is of."""
    accelerator = processes.start()
    p, options = accelerator.num_processes, {"batch_size": batch_size, "precision": "float32"}
    trainer = trainer_of(stage, preset, SIDE, options, accelerator, folder)
    gradients = count_gradients(trainer)
    trainer.train_step(0)
    trainer.train_step(1)
    started = perf_counter()
    for step in range(2, 2 + steps):
        trainer.train_step(step)
    finish(trainer.device)
    speed = steps * batch_size / (perf_counter() - started)
    gradients.clear()
    with counted() as handed:
        statistics = trainer.train_step(2 + steps).statistics
    ring = _SENT["all_reduce"](p)
    reported = sum(ring * own.sums.nbytes + (p - 1) * own.samples.nbytes for own in statistics)
    least = ring * sum(w.nbytes for w in trainer.module.parameters() if w.requires_grad) + reported * (p > 1)
    sent = sum(_SENT[name](p) * size for name, size in handed.items())
    return {
        "images_per_second": round(speed, 2),
        "bytes_of_gradients": round(ring * gradients["gradients"]),
        "bytes_sent": round(sent),
        "least_bytes": round(least),
        "by_operation": dict(handed),
    }


def launched(count: int, threads: int, options: Sequence[str]) -> list[JsonObject]:
    """What so many processes of so many threads measure: one line a stage."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable]
    if count > 1:
        if not torch.cuda.is_available():
            environment["ACCELERATE_USE_CPU"] = "1"
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={count}", "--num_machines=1"]
        command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command += ["-m", "benchmarks.scaling", "--here", *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def in_turn(layouts: Sequence[str], rounds: int, options: Sequence[str]) -> Iterator[JsonObject]:
    """The lines of all rounds, then the ratios."""
    speeds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for layout in layouts:
            count, threads = map(int, layout.split("x"))
            for line in launched(count, threads, options):
                speeds[int(str(line["stage"])), layout].append(float(str(line["images_per_second"])))
                yield {"round": number, "layout": layout, **line}
    for (stage, layout), own in speeds.items():
        ratios = [mine / first for mine, first in zip(own, speeds[stage, layouts[0]], strict=True)]
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        speed, ratio = round(median(own), 1), round(median(ratios), 3)
        yield {
            "stage": stage,
            "layout": layout,
            "images_per_second": speed,
            f"over {layouts[0]}": ratio,
            "range": spread,
        }


@click.command()
@click.option("--layouts", default="1x2,2x1,1x1,4x1", show_default=True, help="PROCESSESxTHREADS, between commas.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--preset", default="base", show_default=True)
@click.option("--here", is_flag=True, hidden=True)
def main(layouts: str, rounds: int, steps: int, batch_size: int, preset: PresetName, here: bool) -> None:
    """Measure and print."""
    if not here:
        options = [f"--steps={steps}", f"--batch-size={batch_size}", f"--preset={preset}"]
        for line in in_turn(layouts.split(","), rounds, options):
            print(json.dumps({**line, **origin(torch.device("cpu"))}), flush=True)
        return
    processes.keep_freed_memory()
    for stage in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            line = measured(stage, preset, batch_size, steps, Path(folder))
        if processes.start().is_main_process:
            print(json.dumps({"stage": stage, **line}), flush=True)
    processes.stop()


if __name__ == "__main__":
    main()
