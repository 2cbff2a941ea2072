"""Images of any program, measured by the same judge, against the same images, as a run's samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from pipeline import processes
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.data import DataConfig
from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.options import build
from pipeline.data.image_set import ImageSet, load_images
from pipeline.data.pixels import Colour
from pipeline.data.splits import Split
from pipeline.errors import DataError, UsageError
from pipeline.evaluation.parts import Labelled, Parts, Source, classes_as_in, read_parts
from pipeline.evaluation.yardstick import yardstick_of
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.evaluation import Figure, JudgeFacts
from pipeline.runs.opening import open_run
from pipeline.training.launch import Launch

_LEAST = 4  # images of a reference: two for the judge, one for each other part


@dataclass(frozen=True)
class FolderEvaluation:
    """Figures of images against real images, and those of other real images, of as many each."""

    judge: JudgeFacts
    images: int
    samples: dict[str, Figure]
    floor: dict[str, Figure]
    notes: tuple[str, ...]


def evaluate_folder(
    samples: str | Path,
    *,
    run: str | Path | None = None,
    reference: str | Path | None = None,
    data: str | None = None,
    test_data: str | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[EvaluateArguments],
) -> FolderEvaluation:
    """Measure a folder or .zip of images, cut to the size of the real ones, as `evaluate` measures samples.

    Against a `run`: by the judge and against the test images of its data (`data` and `test_data` say where they are),
    so that figures stand beside those of its own samples. Or against a `reference`, a folder, .zip or name of
    real images: a half of it teaches the judge, a quarter is measured against, a quarter is the floor. Folders named
    as the classes say what samples should show. Raises GenError.
    """
    if (run is None) == (reference is None):
        raise UsageError("measure --samples against the data of one run, or against a --reference: name one of them")
    (config,) = build(options, EvaluateConfig)
    idle = [f"--{name}" for name in ("guidance", "temperature", "seed") if name in options]
    if idle:
        raise UsageError(f"{', '.join(idle)} is about drawing samples, and --samples are there already; leave it out")
    found, reporter = processes.find_device(device), reporter or reporter_for_api()
    if run is not None:
        opened = open_run(run, "vqvae")
        flip, launch = opened.vqvae.data.flip, Launch({}, processes.start(), reporter, None)
        parts = read_parts(opened, Source(data, test_data), launch)
    else:
        flip, parts = False, _quartered(load_images(DataConfig(data=str(reference)), reporter=reporter), str(reference))
    given = _like(parts, str(samples), reporter)
    if config.n is not None and config.n > len(given.images):
        raise UsageError(f"--n {config.n:,}: {samples} holds {len(given.images):,} images; choose as many at most")
    there = min(len(given.images), len(parts.test.images), len(parts.split.validation))
    yardstick = yardstick_of(parts, replace(config, n=config.n or there), flip=flip, device=found, reporter=reporter)
    judged = yardstick.measured(*given.spread(yardstick.images))
    floor = yardstick.measured(*yardstick.real["validation"])
    notes = yardstick.notes
    if yardstick.with_classes and given.labels is None:
        notes += (f"no class shown: {samples} has no folders with the names of the classes",)
    return FolderEvaluation(yardstick.facts, yardstick.images, judged.figures, floor.figures, notes)


def _quartered(image_set: ImageSet, reference: str) -> Parts:
    n = len(image_set.images)
    if n < _LEAST:
        raise DataError(f"{reference} holds {n} images, and a reference needs {_LEAST} at least")
    order = stream(0, Purpose.SPLIT).permutation(n)
    test, validation, train = np.split(order, [n // 4, n // 2])
    split = Split(*map(np.sort, (train, validation, test)))
    first = Parts(image_set, split, Labelled(image_set.images[:0], None))
    return replace(first, test=first.labelled(split.test))


def _like(parts: Parts, samples: str, reporter: Reporter) -> Labelled:
    channels, height, width = parts.image_set.shape
    colour: Colour = "grey" if channels == 1 else "colour"
    config = DataConfig(data=samples, image_size=f"{height}x{width}", colour=colour)
    read = load_images(config, reporter=reporter)
    return Labelled(read.images, classes_as_in(read, parts.image_set.class_names, samples))
