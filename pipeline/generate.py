"""Draw new images: `generate()` into memory, `generate_files()` into a folder, which is what `gen sample` calls."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline import processes
from pipeline.claim import Claim, Request
from pipeline.drawers import Drawer
from pipeline.errors import InterruptedRunError
from pipeline.interruption import Interruption
from pipeline.labels import Label
from pipeline.model import Model, load
from pipeline.options import build
from pipeline.reporting import Reporter, Silent
from pipeline.run import RunFolder, check_drawable, find_run
from pipeline.samples import (
    GRID_IMAGES,
    Format,
    Samples,
    first_codes,
    missing_parts,
    save_grid,
    write_part,
    written_parts,
)
from stage2_prior import Warp

_UNWRITTEN = 2  # finished parts that may wait to be written while the next is drawn

_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class SampleConfig:
    """How many images are drawn, and how the work is cut; none of it but the seed changes an image."""

    n: int = Field(default=GRID_IMAGES, ge=1, description="Images to draw.")
    seed: int = Field(default=0, ge=0, description="Seed: image i of a seed is always the same picture.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Images drawn at a time by each process [default: as memory allows, 256 at most].",
    )
    precision: Literal["float32", "float64"] = Field(
        default="float32", description="float64 draws the same codes in every batch size, without exception."
    )


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class FileConfig:
    """How images are written."""

    format: Format = Field(
        default="png", description="One PNG an image, or a .zip of them, or a .safetensors of pixels, for each part."
    )


def generate(
    run: str | Path | None = None,
    n: int = GRID_IMAGES,
    *,
    seed: int = 0,
    label: Label = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Literal["float32", "float64"] = "float32",
    reporter: Reporter | None = None,
) -> Samples:
    """Draw n new images from a run (by default the newest that there is something to draw from).

    Image i depends on the run, the seed, i and the class alone: not on n, the batch size or the number of
    processes, among which the work is shared when launched by accelerate. `label`: a class by name or number, or
    several, drawn in turn, or "balanced" for all; without it classes are drawn in the training data's proportions.
    Raises UsageError with all bad arguments at once, and CheckpointError.
    """
    sizes = {"n": n, "seed": seed, "batch_size": batch_size, "precision": precision}
    warping = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    config, warp = build([SampleConfig, Warp], {**sizes, **warping}, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    accelerator = processes.start()
    model = load(folder.path, device=device or accelerator.device, precision=config.precision)
    drawing: dict[str, Any] = {"seed": config.seed, "label": label, "batch_size": config.batch_size, "warp": warp}
    return model.sample(config.n, **drawing, accelerator=accelerator, reporter=reporter)


class Drawn(NamedTuple):
    """Where images lie, how many there are, and how many of them were drawn just now."""

    folder: Path
    n: int
    new: int


def generate_files(
    run: str | Path | None = None,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Drawn:
    """Draw the images of `generate` into a folder, by default RUN/samples/seed-SEED; memory does not grow with n.

    Finished images are written, a part at a time, while others are drawn. Called again with the same arguments, or
    with a larger `n`, it draws what is missing, and leaves what is there. Processes share the missing parts, and meet
    only at the end. `options` are the fields of SampleConfig, Warp and FileConfig. Raises UsageError, also when the
    folder holds anything else, CheckpointError, and InterruptedRunError on a signal.
    """
    config, warp, files = build([SampleConfig, Warp, FileConfig], options, {})
    folder = find_run(run, "samples")
    check_drawable(folder)
    accelerator = processes.start()
    model = load(folder.path, device=device or accelerator.device, precision=config.precision)
    drawer = model.drawer(seed=config.seed, label=label, warp=warp)
    target = Path(out) if out else samples_folder(folder, config.seed, label)
    with Claim(target, _request(model, drawer, config, files), accelerator):
        work = _Work(drawer, target, config, files.format)
        new = work.carry_out(accelerator, reporter or Silent())
        if accelerator.is_main_process:
            codes = first_codes(target, written_parts(target, files.format), GRID_IMAGES)
            save_grid(target, model.decode(codes))
    return Drawn(target, config.n, new)


def _request(model: Model, drawer: Drawer, config: SampleConfig, files: FileConfig) -> Request:
    return Request(
        vqvae_sha256=model.vqvae.sha256,
        prior_sha256=drawer.prior_sha256,
        seed=config.seed,
        label=drawer.class_name,
        **asdict(drawer.warp),
        precision=config.precision,
        format=files.format,
    )


class _Work(NamedTuple):
    """The images of a request, to be drawn into a folder."""

    drawer: Drawer
    folder: Path
    config: SampleConfig
    format: Format

    def carry_out(self, accelerator: Accelerator, reporter: Reporter) -> int:
        """Draw and write what is missing, shared over the processes; return how many images that were."""
        missing = self._missing(accelerator.num_processes)
        accelerator.wait_for_everyone()  # all have looked before any writes
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        with Interruption(accelerator) as interruption:
            drawn = self._draw(mine, interruption, reporter)
        outcome = torch.tensor([drawn, interruption.wish], device=accelerator.device)
        outcomes = accelerator.gather(outcome).reshape(-1, 2)
        total, wish = int(outcomes[:, 0].sum()), int(outcomes[:, 1].max())
        left = sum(len(part) for part in missing) - total
        if left:
            raise InterruptedRunError(f"stopped as asked; the same command draws the {left:,} images left", wish)
        return total

    def _missing(self, shares: int) -> list[range]:
        written = written_parts(self.folder, self.format)
        images = sum(len(gap) for gap in missing_parts(written, self.config.n, self.config.n))
        share = max(1, -(-images // shares))
        size = min(share, self.config.batch_size or self.drawer.batch_size(share))
        return missing_parts(written, self.config.n, size)

    def _draw(self, parts: list[range], interruption: Interruption, reporter: Reporter) -> int:
        """One part after another, until a signal: it is drawn here, and written by a thread."""
        drawn, started = 0, perf_counter()
        unwritten: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as writer:
            for step in reporter.steps(range(len(parts)), "draw"):
                samples = self.drawer(np.array(parts[step]))
                unwritten.append(writer.submit(write_part, self.folder, parts[step], samples, self.format))
                drawn += len(samples)
                reporter.show({"images/s": drawn / (perf_counter() - started)})
                if len(unwritten) > _UNWRITTEN:
                    unwritten.popleft().result()
                if interruption.wish:
                    break
            for future in unwritten:
                future.result()
        return drawn


def samples_folder(run: RunFolder, seed: int, label: Label) -> Path:
    """Where samples go unless told otherwise."""
    words = label if label is None or isinstance(label, int | str) else ",".join(map(str, label))
    return run.samples / (f"seed-{seed}" if label is None else f"seed-{seed}-{str(words).replace('/', '-')}")
