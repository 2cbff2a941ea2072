"""Draw new images: `generate()` into memory, `generate_files()` into a folder, which is what `gen sample` calls."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline import processes
from pipeline.checkpoint import FORMAT_VERSION
from pipeline.errors import CheckpointError, InterruptedRunError, UsageError, describe
from pipeline.interruption import Interruption
from pipeline.model import Drawer, Model, class_number, load
from pipeline.options import build
from pipeline.reporting import Reporter, Silent
from pipeline.run import RunFolder, check_prior_is_finished, find_run
from pipeline.samples import GRID_IMAGES, Format, Samples, first_codes, is_written, join, save_grid, write_part
from pipeline.storage import read_json, write_json
from stage2_prior import Warp

REQUEST = "request.json"
_UNWRITTEN = 2  # parts that may wait to be written while the next is drawn

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


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Request:
    """request.json of a folder of samples: all that decides what its images are, and how they are laid out."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["samples"] = "samples"
    vqvae_sha256: str
    prior_sha256: str
    seed: int
    label: str | None
    temperature: float
    top_k: int | None
    top_p: float | None
    precision: str
    format: Format
    part: int  # images whose files are complete together


def generate(
    run: str | Path | None = None,
    n: int = GRID_IMAGES,
    *,
    seed: int = 0,
    label: int | str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Literal["float32", "float64"] = "float32",
    reporter: Reporter | None = None,
) -> Samples:
    """Draw n new images from a run (by default the newest that has a prior).

    Image i depends on the run, the seed, i and the class alone: not on n, the batch size or the number of
    processes, among which the work is shared when launched by accelerate. Without `label`, classes are drawn in the
    training data's proportions. Raises UsageError with all bad arguments at once, and CheckpointError.
    """
    sizes = {"n": n, "seed": seed, "batch_size": batch_size, "precision": precision}
    warping = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    config, warp = build([SampleConfig, Warp], {**sizes, **warping}, {})
    folder = find_run(run, "prior")
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
    label: int | str | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Drawn:
    """Draw the images of `generate` into a folder, by default RUN/samples/seed-SEED; memory does not grow with n.

    Finished images are written while others are drawn. Called again with the same arguments, or with a larger `n`, it
    draws what is missing. Processes share the parts of the folder, and do not wait for each other. `options` are the
    fields of SampleConfig, Warp and FileConfig. Raises UsageError, also when the folder holds anything else,
    CheckpointError, and InterruptedRunError on a signal.
    """
    config, warp, files = build([SampleConfig, Warp, FileConfig], options, {})
    folder = find_run(run, "prior")
    check_prior_is_finished(folder)
    accelerator = processes.start()
    model = load(folder.path, device=device or accelerator.device, precision=config.precision)
    drawer = model.drawer(seed=config.seed, label=label, warp=warp)
    share = -(-config.n // accelerator.num_processes)
    size = min(share, config.batch_size or drawer.batch_size(share))
    asked = _request(model, drawer, config, files, size)
    target = Path(out) if out else samples_folder(folder, config.seed, label)
    request = _agree(target, asked, accelerator)
    work = _Work(drawer, request, target, config.n, min(size, request.part))
    new = torch.tensor(work.carry_out(accelerator, reporter or Silent()), device=accelerator.device)
    new = accelerator.reduce(new, "sum")  # and all processes are done
    if accelerator.is_main_process:
        save_grid(target, model.decode(first_codes(target, min(config.n, GRID_IMAGES))))
    return Drawn(target, config.n, int(new))


def _request(model: Model, drawer: Drawer, config: SampleConfig, files: FileConfig, part: int) -> Request:
    names = drawer.prior.config.class_names
    return Request(
        vqvae_sha256=model.vqvae.sha256,
        prior_sha256=drawer.prior.sha256,
        seed=config.seed,
        label=None if drawer.label is None else names[class_number(drawer.label, names)],
        **asdict(drawer.warp),
        precision=config.precision,
        format=files.format,
        part=part,
    )


def _agree(folder: Path, asked: Request, accelerator: Accelerator) -> Request:
    """The request that a folder is filled by: the one it was begun with, or now this one. Raises UsageError."""
    path = folder / REQUEST
    if accelerator.is_main_process and not path.exists() and not (folder.exists() and any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(asked))
    accelerator.wait_for_everyone()
    if not path.exists():
        raise UsageError(f"{folder} exists already, and holds no samples; choose another --out or --seed")
    try:
        begun: Request = TypeAdapter(Request).validate_python(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is not the request of samples: {describe(error)}") from error
    wanted, there = asdict(asked), asdict(begun)
    differing = [f"{name} {there[name]}, not {wanted[name]}" for name in there if there[name] != wanted[name]]
    if replace(asked, part=begun.part) != begun:
        differing = [text for text in differing if not text.startswith("part ")]
        raise UsageError(f"{folder} holds samples of {'; '.join(differing)}; choose another --out or --seed")
    return begun


class _Work(NamedTuple):
    """Images 0 to n - 1 of a request, to be drawn `batch_size` at a time into a folder."""

    drawer: Drawer
    request: Request
    folder: Path
    n: int
    batch_size: int

    def carry_out(self, accelerator: Accelerator, reporter: Reporter) -> int:
        """Draw and write what is missing of this process's parts; return how many images that were."""
        parts = range(accelerator.process_index, -(-self.n // self.request.part), accelerator.num_processes)
        missing = [part for part in parts if not self._is_written(part)]
        drawn, started = 0, perf_counter()
        pending: deque[Future[None]] = deque()
        with Interruption(accelerator) as interruption, ThreadPoolExecutor(1) as writer:
            for step in reporter.steps(range(len(missing)), "draw"):
                samples = self._draw(missing[step])
                pending.append(writer.submit(self._write, missing[step], samples))
                drawn += len(samples)
                reporter.show({"images/s": drawn / (perf_counter() - started)})
                if len(pending) > _UNWRITTEN:
                    pending.popleft().result()
                if interruption.wish:
                    raise InterruptedRunError(
                        f"stopped as asked after {drawn:,} images; the same command draws the others", interruption.wish
                    )
            for future in pending:
                future.result()
        return drawn

    def _indices(self, part: int) -> range:
        return range(part * self.request.part, min((part + 1) * self.request.part, self.n))

    def _draw(self, part: int) -> Samples:
        indices = np.array(self._indices(part))
        return join([self.drawer(batch) for batch in _batches(indices, self.batch_size)])

    def _write(self, part: int, samples: Samples) -> None:
        write_part(self.folder, part, self._indices(part).start, samples, self.request.format)

    def _is_written(self, part: int) -> bool:
        indices = self._indices(part)
        return is_written(self.folder, part, indices.start, len(indices), self.request.format)


def _batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def samples_folder(run: RunFolder, seed: int, label: Any) -> Path:
    """Where samples go unless told otherwise."""
    return run.samples / (f"seed-{seed}" if label is None else f"seed-{seed}-{str(label).replace('/', '-')}")
