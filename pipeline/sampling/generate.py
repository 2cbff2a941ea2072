"""Draw new images: `generate()` into memory, `generate_files()` into a folder, which is what `gen sample` calls."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Unpack

import numpy as np
import torch
from accelerate import Accelerator

from pipeline import processes
from pipeline.config.arguments import GenerateArguments, GenerateFilesArguments
from pipeline.config.options import build
from pipeline.config.sampling import GRID_IMAGES, DecoderName, FileConfig, FloatPrecision, Format, SampleConfig
from pipeline.errors import InterruptedRunError
from pipeline.interruption import Interruption
from pipeline.reporting import Reporter, Silent
from pipeline.resources import check_disk
from pipeline.runs.layout import RunFolder
from pipeline.runs.status import StatusFile
from pipeline.sampling.labels import Label, plain
from pipeline.sampling.model import Model, loaded
from pipeline.sampling.request import Request, sample_folder
from pipeline.sampling.samplers import Sampler
from pipeline.sampling.samples import (
    Samples,
    bytes_on_disk,
    first_codes,
    missing_parts,
    save_grid,
    write_part,
    written_parts,
)
from pipeline.storage import check_paths
from stage2_prior import SamplingOptions

_LONGEST_NAME = 200  # bytes
_UNWRITTEN = 2  # finished parts that may wait to be written while the next is drawn


def generate(
    run: str | Path | Model | None = None,
    n: int = GRID_IMAGES,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[GenerateArguments],
) -> Samples:
    """Draw n new images from a run (a folder, a loaded one, or by default the newest that can be sampled from).

    Image i depends on the run, the seed, i and the class alone: not on n, the batch size or the number of
    processes, which divide the work when launched by accelerate. `label`: a class by name or number, or several,
    drawn in turn, or "balanced" for all; without it classes are drawn in the training data's proportions. `options`
    are the fields of SampleConfig and SamplingOptions; without `guidance` the run's own is used, and "best" is what
    `gen evaluate` chose. `decoder`: as of `load`. Raises UsageError with all bad arguments at once, and
    CheckpointError.
    """
    config, sampling = build({"n": n, **options}, SampleConfig, SamplingOptions)
    accelerator = processes.start()
    model, sampling = _loaded_alike(run, device, options.get("precision"), decoder, sampling, accelerator)
    return model.sample(
        config.n,
        seed=config.seed,
        label=label,
        batch_size=config.batch_size,
        options=sampling,
        accelerator=accelerator,
        reporter=reporter,
    )


def _loaded_alike(
    run: str | Path | Model | None,
    device: str | torch.device | None,
    precision: FloatPrecision | None,
    decoder: DecoderName | None,
    sampling: SamplingOptions,
    accelerator: Accelerator,
) -> tuple[Model, SamplingOptions]:
    """The same run on every process, and the options with the numbers that this run has for those not given.

    Raises what `loaded` and `Model.resolve` raise, and UsageError where processes see different runs.
    """

    def load_and_resolve() -> tuple[Model, SamplingOptions]:
        model = loaded(run, "samples", device, precision, decoder)
        return model, model.resolve(sampling)

    def in_words(found: tuple[Model, SamplingOptions]) -> str:
        model, resolved = found
        hashes = [model.vqvae.codes_sha256, model.vqvae.decoder_sha256, *(p.sha256 for p in model.priors)]
        return " ".join([*hashes, repr(resolved)])

    return processes.alike(
        accelerator,
        load_and_resolve,
        in_words,
        f"the run {'to sample from' if run is None else run!s:.200}",
    )


class Generated(NamedTuple):
    """Where images lie, how many there are, and how many of them were drawn just now."""

    folder: Path
    n: int
    new: int


def generate_files(
    run: str | Path | Model | None = None,
    *,
    label: Label = None,
    device: str | torch.device | None = None,
    decoder: DecoderName | None = None,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[GenerateFilesArguments],
) -> Generated:
    """Draw the images of `generate` into a folder, by default RUN/samples/seed-SEED; memory does not grow with n.

    A published run is not written into: RUN is then a folder of its name under runs/, such as runs/pretrained-digits.
    Finished images are written, a part at a time, while others are drawn. Called again with the same arguments, or
    with a larger `n`, it draws what is missing, and leaves what is there. Processes divide the missing parts, and meet
    only at the end. `options` are the fields of SampleConfig, SamplingOptions and FileConfig. Raises UsageError, also
    when the folder holds anything else, CheckpointError, ResourceError where disk or memory do not hold so many images,
    and InterruptedRunError on a signal.
    """
    check_paths(out=out)
    config, sampling, files = build(options, SampleConfig, SamplingOptions, FileConfig)
    accelerator = processes.start()
    model, sampling = _loaded_alike(run, device, options.get("precision"), decoder, sampling, accelerator)
    sampler = model.sampler(seed=config.seed, label=label, options=sampling)
    folder = Path(out) if out else samples_folder(model.run.outputs, config.seed, label)
    say = reporter or Silent()
    request = _request(model, sampler, files)
    with sample_folder(folder, request, accelerator), _status_kept(model.run.folder, folder, accelerator, say):
        new = _Drawing(sampler, folder, config, files.format).run(accelerator, say)

        def show() -> None:
            codes = first_codes(folder, written_parts(folder, files.format), GRID_IMAGES)
            save_grid(folder, model.decode(codes))

        processes.on_main(accelerator, show)
    return Generated(folder, config.n, new)


@contextmanager
def _status_kept(run: RunFolder, folder: Path, accelerator: Accelerator, reporter: Reporter) -> Iterator[None]:
    """Keep the run's status.json while a folder in it is filled. Images that lie elsewhere are no work on the run,
    which may be somebody else's, or read-only."""
    if not folder.resolve().is_relative_to(run.path.resolve()):
        yield
        return
    with StatusFile(run.path, "samples", accelerator, reporter) as status:
        status.begin("samples")
        yield


def samples_folder(run: RunFolder, seed: int, label: Label) -> Path:
    """Where samples go unless told otherwise."""
    if label is None:
        return run.samples / f"seed-{seed}"
    classes = plain(label)
    words = str(classes) if isinstance(classes, int | np.integer | str) else ",".join(map(str, classes or ()))
    name = f"seed-{seed}-{words.replace('/', '-')}"
    if len(name.encode()) > _LONGEST_NAME:  # file systems allow 255 bytes
        name = f"seed-{seed}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    return run.samples / name


def _request(model: Model, sampler: Sampler, files: FileConfig) -> Request:
    return Request(
        codes_sha256=model.vqvae.codes_sha256,
        decoder=model.run.decoder,
        decoder_sha256=model.vqvae.decoder_sha256,
        prior_sha256=sampler.prior_sha256,
        seed=sampler.seed,
        label=sampler.classes_in_words,
        **asdict(sampler.options),
        precision=model.precision,
        format=files.format,
    )


class _Drawing(NamedTuple):
    """The images of a request, to be drawn into a folder."""

    sampler: Sampler
    folder: Path
    config: SampleConfig
    format: Format

    def run(self, accelerator: Accelerator, reporter: Reporter) -> int:
        """Draw and write what is missing, divided over the processes; return how many images that were."""
        missing = self._missing(accelerator)
        accelerator.wait_for_everyone()  # all have looked before any writes
        own = missing[accelerator.process_index :: accelerator.num_processes]
        with Interruption(accelerator) as interruption:
            drawn = self._draw(own, interruption, reporter)
        outcome = torch.tensor([drawn, interruption.signal_number], device=accelerator.device)
        outcomes = accelerator.gather(outcome).reshape(-1, 2)
        total, signal_number = int(outcomes[:, 0].sum()), int(outcomes[:, 1].max())
        left = sum(len(part) for part in missing) - total
        if left:
            message = f"stopped as asked; the same command draws the {left:,} images left"
            raise InterruptedRunError(message, signal_number)
        return total

    def _missing(self, accelerator: Accelerator) -> list[range]:
        written = written_parts(self.folder, self.format)
        images = sum(len(gap) for gap in missing_parts(written, self.config.n, self.config.n))
        processes.on_main(accelerator, lambda: self._check_disk(images))
        per_process = max(1, -(-images // accelerator.num_processes))
        own = self.sampler.batch_size(per_process, self.config.batch_size)
        # Free memory differs: all must cut alike, or some images would be drawn twice and others never.
        size = int(accelerator.gather(torch.tensor([own], device=accelerator.device)).min())
        return missing_parts(written, self.config.n, size)

    def _check_disk(self, images: int) -> None:
        needed = images * bytes_on_disk(self.sampler.bytes_per_image, self.format)
        remedy = "draw fewer with --n, or write them elsewhere with --out"
        check_disk(self.folder, needed, f"drawing {images:,} images as {self.format}", remedy)

    def _draw(self, parts: list[range], interruption: Interruption, reporter: Reporter) -> int:
        """One part after another, until a signal: it is drawn here, and written by a thread."""
        drawn, started = 0, perf_counter()
        unwritten: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as writer:
            for step in reporter.steps(range(len(parts)), "draw"):
                samples = self.sampler.sample(np.array(parts[step]))
                unwritten.append(writer.submit(write_part, self.folder, parts[step], samples, self.format))
                drawn += len(samples)
                reporter.show({"images/s": drawn / (perf_counter() - started)})
                if len(unwritten) > _UNWRITTEN:
                    unwritten.popleft().result()
                if interruption.signal_number:
                    break
            for future in unwritten:
                future.result()
        return drawn
