"""Images of any program, measured by the same judge, against the same images, as a run's samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from pipeline import processes
from pipeline.config.arguments import EvaluateArguments
from pipeline.config.data import DataConfig
from pipeline.config.evaluation import MOST_BY_DEFAULT, EvaluateConfig
from pipeline.config.options import Options, build
from pipeline.data import pixels
from pipeline.data.codes.maps import load_codes
from pipeline.data.image_set import ImageSet
from pipeline.data.loading import load_images
from pipeline.data.pixels import Colour
from pipeline.data.splits import Split
from pipeline.errors import DataError, UsageError
from pipeline.evaluation.parts import Labelled, Parts, Source, classes_as_in, read_parts
from pipeline.evaluation.yardstick import near_quantile, yardstick_of
from pipeline.randomness import Purpose, stream
from pipeline.reporting import Reporter, reporter_for_api
from pipeline.runs.evaluation import Figure, JudgeFacts
from pipeline.runs.opening import open_run
from pipeline.sampling.request import REQUEST
from pipeline.sampling.samples import codes_file, picture_name, written_parts
from pipeline.storage import check_paths
from pipeline.training.launch import Launch

_DRAWING = ("guidance", "guidance_schedule", "temperature", "seed")
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
    image_size: str | None = None,
    data: str | None = None,
    test_data: str | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[EvaluateArguments],
) -> FolderEvaluation:
    """Measure a folder or .zip of images, cut to the size of the real ones, as `evaluate` measures samples.

    Against a `run`: by the judge and against the test images of its data (`data` and `test_data` say where they are),
    so that figures stand beside those of its own samples. Or against a `reference`, a folder, .zip or name of
    real images, cut to `image_size` where they differ: a half of it teaches the judge, a quarter is measured against, a
    quarter is the floor. What samples should show is said by folders named as the classes, or in a folder that
    `gen sample` wrote by its codes. Raises GenError.
    """
    check_paths(samples=samples, run=run, reference=reference, data=data, test_data=test_data)
    if (run is None) == (reference is None):
        raise UsageError("measure --samples against the data of one run, or against a --reference: name one of them")
    (config,) = build(options, EvaluateConfig)
    _check_idle({**options, "image_size": image_size, "data": data, "test_data": test_data}, run)
    found, reporter = processes.find_device(device), reporter or reporter_for_api()
    if run is not None:
        opened, launch = open_run(run, "vqvae", "plain"), Launch({}, processes.start(), reporter, None)
        most = None if config.inception else max(MOST_BY_DEFAULT, config.n or 0)
        real, parts = opened.vqvae.data, read_parts(opened, Source(data, test_data), most, launch)
    else:
        (real,) = build({"data": str(reference), "image_size": image_size}, DataConfig)
        parts = _quartered(load_images(real, reporter=reporter), str(reference))
    given = _like(parts, real, Path(samples), reporter)
    if config.n is not None and config.n > len(given.images):
        raise UsageError(f"--n {config.n:,}: {samples} holds {len(given.images):,} images; choose as many at most")
    n = config.n or min(len(given.images), len(parts.test.images), len(parts.split.validation), MOST_BY_DEFAULT)
    yardstick = yardstick_of(parts, replace(config, n=n), flip=real.flip, device=found, reporter=reporter)
    judged = yardstick.measured(*given.drawn(n), near_quantile(yardstick.floor.nearest))
    notes = yardstick.notes
    if yardstick.with_classes and given.labels is None:
        notes += (f"no class shown: {samples} has no folders with the names of the classes",)
    return FolderEvaluation(yardstick.facts, n, judged.figures, yardstick.floor.figures, notes)


def _check_idle(options: Options, run: str | Path | None) -> None:
    """Raise UsageError for options that mean nothing here."""
    idle = dict.fromkeys(_DRAWING, "drawing samples, and --samples are there already")
    if run is None:
        idle |= dict.fromkeys(("data", "test_data"), "the data of a run, and none is named")
    else:
        idle["image_size"] = "a --reference; the images of a run have a size"
    wrong = [
        f"--{name.replace('_', '-')} is about {why}; leave it out"
        for name, why in idle.items()
        if options.get(name) is not None
    ]
    if wrong:
        raise UsageError("\n".join(wrong))


def _quartered(image_set: ImageSet, reference: str) -> Parts:
    n = len(image_set.images)
    if n < _LEAST:
        raise DataError(f"{reference} holds {n} images, and a reference needs {_LEAST} at least")
    order = stream(0, Purpose.SPLIT).permutation(n)
    test, validation, train = np.split(order, [n // 4, n // 2])
    split = Split(*map(np.sort, (train, validation, test)))
    first = Parts(image_set, split, Labelled(image_set.images[:0], None))
    return replace(first, test=first.labelled(split.test))


def _like(parts: Parts, real: DataConfig, samples: Path, reporter: Reporter) -> Labelled:
    """Images made as those of the data are, which `real` says of them."""
    channels, height, width = parts.image_set.shape
    colour: Colour = "grey" if channels == 1 else "colour"
    if (samples / REQUEST).is_file():
        return _own(samples, height, width, colour)
    options = {"image_size": f"{height}x{width}", "colour": colour, "crop": real.crop, "draft": real.draft}
    read = load_images(*build({**options, "data": str(samples)}, DataConfig), reporter=reporter)
    return Labelled(read.images, classes_as_in(read, parts.image_set.class_names, str(samples)))


def _own(samples: Path, height: int, width: int, colour: Colour) -> Labelled:
    """Images that `gen sample` wrote as PNG, without grid.png, and the classes that stand in their codes."""
    parts = written_parts(samples, "png")
    indices = [index for part in parts for index in part]
    if not indices:
        raise DataError(f"{samples} holds no whole PNG of `gen sample`; go on with it, or draw with --format png")
    contents = ((samples / picture_name(index)).read_bytes() for index in indices)
    images = np.stack([pixels.fit(pixels.open_image(content), height, width, colour) for content in contents])
    labels = [load_codes(codes_file(samples, part)).labels for part in parts]
    known = [label.numpy() for label in labels if label is not None]
    return Labelled(images, np.concatenate(known) if known else None)
