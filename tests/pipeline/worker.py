"""What two processes do in test_processes.py, all of it in one launch: the libraries take seconds to be imported.

Both stages are trained with every discrete bottleneck, and drawn from; what differs between processes is refused, or
made alike; and signals stop a training.

accelerate launch ... -m tests.pipeline.worker FOLDER COMMAND
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline import GenError, evaluate, generate, generate_files, processes, sharpen, train_prior, train_vqvae
from pipeline.cli.main import main
from pipeline.randomness import Purpose, number
from pipeline.storage import save_tensors
from stage1_vqvae import VQVAETask
from stage1_vqvae.task import VQVAETaskOutput
from tests.pipeline.signalled_worker import be_signalled, exit_code
from tests.pipeline.start_worker import start_alike
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes, tiny_vqvae

PRIOR_OPTIONS: dict[str, dict[str, Any]] = {"levels": {"prior": "pixelsnail", "encodings": 2, "shift": 1}}
KINDS: dict[str, dict[str, Any]] = {
    "ema": {"codebook_rule": "ema"},
    "gradient": {"codebook_rule": "gradient"},
    # Where a weight's gradient is nearly 0, Adam's first steps are made of its rounding: keep them small.
    "gumbel": {"bottleneck": "gumbel", "learning_rate": 1e-4},
    "fsq": {"bottleneck": "fsq"},
    "levels": {"levels": 2, "downsampling": 2},
}
STAGE_1_KINDS: dict[str, dict[str, Any]] = {  # nothing but stage 1 differs
    "simvq": {"codebook_rule": "simvq", "unit_codes": True},
    "hierarchical": {"levels": 2, "downsampling": 2},
    "residual": {"levels": 2, "level_kind": "residual", "likelihood": "discretized-logistic"},
    "gaussian": {"bottleneck": "gaussian", "objective": "sharp"},
    "mmd": {"bottleneck": "mmd"},
    "denoise": {"denoise": 0.3},
}
DRAWN = ("ema", "levels")  # runs that images are drawn from
FILED = "ema"  # a run of which images are drawn into files
SHARPENED = "gradient"  # a run whose decoder is trained further
SKIPPED = "skipped"  # a run of which one step is skipped
INITIAL = "initial"  # a run that begins from the one that is there before
LOGGED = "levels"  # a run whose priors are logged to tensorboard too
GIVEN = "given"  # a run that is there before
STARTED = "started"  # trainings that begin from different weights
UNEVEN = "uneven"  # a training that is refused
SIGNALLED = "signalled"  # trainings that signals stop
N = 11  # not a multiple of the processes


def work(folder: Path) -> None:
    """Train and draw into a folder; the same calls whatever the number of processes."""
    images, targets = shapes()
    for name, choice in KINDS.items():
        run = folder / name
        bottleneck = str(choice.get("bottleneck", "vq"))
        options = {**tiny_vqvae(bottleneck), **choice, "micro_batches": 4, "flip": True}
        options |= {"revival_threshold": 0.5} if bottleneck == "vq" else {}
        train_vqvae(out=run, images=images, targets=targets, **options)
        prior_options = {**TINY_PRIOR, "micro_batches": 2, "dropout": 0.5, **PRIOR_OPTIONS.get(name, {})}
        log = "tensorboard" if name == LOGGED else None
        train_prior(run, images=images, targets=targets, force=True, log=log, **prior_options)
        if name in DRAWN:
            draw(run)
    generate_files(folder / FILED, n=N, seed=5, out=folder / FILED / "files", batch_size=2, format="zip")
    for name, choice in STAGE_1_KINDS.items():
        options = {**tiny_vqvae(str(choice.get("bottleneck", "vq"))), **choice, "micro_batches": 4, "flip": True}
        train_vqvae(out=folder / name, images=images, targets=targets, **options)
    further: dict[str, Any] = {"steps": 6, "features": "kmeans", "micro_batches": 4, "precision": "float32"}
    sharpen(folder / SHARPENED, images=images, targets=targets, average_decay=0.9, **further)
    small, labels = shapes(24, (16, 8))  # of another size
    begun: dict[str, Any] = {"steps": 6, "batch_size": 8, "precision": "float32", "micro_batches": 4}
    train_vqvae(out=folder / INITIAL, images=small, targets=labels, init=folder / GIVEN, **begun)
    evaluate(folder / GIVEN, images=images, targets=targets, guidance=(2,))
    with poisoned_micro_batch(step=3, part=2):
        train_vqvae(out=folder / SKIPPED, images=images, targets=targets, **TINY_VQVAE, micro_batches=4)


def draw(run: Path) -> None:
    """Draw in each precision; the main process writes it down."""
    precisions: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")
    for precision in precisions:
        samples = generate(run, N, seed=5, precision=precision)
        assert samples.labels is not None
        codes = {f"codes{level}": codes for level, codes in enumerate(samples.codes)}
        tensors = {"images": samples.images, **codes, "labels": samples.labels}
        if int(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0) == 0:
            save_tensors(run / f"samples-{precision}.safetensors", tensors)


@contextmanager
def poisoned_micro_batch(step: int, part: int) -> Iterator[None]:
    """The loss of one micro-batch of one step, which one process computes, is no number."""
    forward, seed = VQVAETask.forward, number(0, Purpose.TRAINING_NOISE, step, part)

    def poisoned(self: VQVAETask, images: Tensor, progress: float = 0.0) -> VQVAETaskOutput:
        is_chosen = torch.initial_seed() == seed  # as the loop seeds the noise of each micro-batch
        output = forward(self, images, progress)
        return output._replace(loss=output.loss * float("nan")) if is_chosen else output

    setattr(VQVAETask, "forward", poisoned)  # noqa: B010 - mypy takes it for a method's assignment
    try:
        yield
    finally:
        setattr(VQVAETask, "forward", forward)  # noqa: B010


def disagree(folder: Path) -> None:
    """What each of several processes raises where they do not see the same; written into a file of its own."""
    images, targets = shapes()
    rank = processes.start().process_index
    own = folder / f"node-{rank}"  # as if this were a node without a shared file system
    if rank == 0:
        shutil.copytree(folder / "ema", own)
        (own / "vqvae" / "manifest.json").unlink()  # an unfinished run, on this node alone
    said = []
    for arguments in (
        {"out": own, "resume": "auto", "data": "array", "images": images, "targets": targets},
        {"out": folder / "other", "images": images[rank:], "targets": targets[rank:], **TINY_VQVAE},
        {"out": folder / "missing", "data": str(folder / f"images-{rank}"), **TINY_VQVAE},
    ):
        try:
            train_vqvae(**arguments)
        except GenError as error:
            said.append(f"{error.exit_code} {error}")
    (folder / f"disagreed-{rank}.json").write_text(json.dumps(said))


def divide_unevenly(folder: Path) -> None:
    """What the command exits with on each process where they do not divide the micro-batches."""
    code = exit_code(folder / UNEVEN, "--preset=tiny", "--micro-batches=1")
    (folder / f"uneven-{processes.start().process_index}.json").write_text(json.dumps(code))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    disagree(Path(sys.argv[1]))
    divide_unevenly(Path(sys.argv[1]))
    start_alike(Path(sys.argv[1]) / STARTED)
    be_signalled(Path(sys.argv[1]) / SIGNALLED)
    main(sys.argv[2:])  # last: a command that ends well leaves the other processes
