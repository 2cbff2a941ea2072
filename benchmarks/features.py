"""What codes and encoder outputs are worth elsewhere: to a linear classifier, to find alike images, against noise.

    pip install scikit-image
    python -m benchmarks.features RUN... [--n 5000] [--part denoised]

Prints JSON lines for each run. `probe`: of test images the percentage that logistic regression gets right after N
training images, on each kind of feature, on principal components of as many numbers fitted to the same images, and on
raw pixels (C = 0.1; numbers are centred, and scaled each by itself or all alike, whichever is better on validation
images). `retrieval`: of 500 test images the percentage of the ten nearest of these training images that are of their
class, by the vectors of codes (as `gen nearest` has it), by the number of positions whose codes differ, and by pixels.
Of a run with --denoise, `denoised`: PSNR (dB) of test images with noise of that standard deviation, as they are,
reconstructed, and by a median filter of 3x3 pixels and non-local means (Buades et al. 2005; the strength the best of
five on validation images).
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import median_filter  # type: ignore[import-untyped]  # scipy has no types
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from pipeline import Model, Silent, features, load
from pipeline.evaluation.parts import Labelled, Source, read_parts
from pipeline.processes import start
from pipeline.training.launch import Launch
from stage1_vqvae.noise import add_own_noise

_QUERIES, _NEAREST = 500, 10
_STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of non-local means, over the standard deviation of the noise
_TRIED, _CHOSEN_ON = 200, 1000  # validation images that a strength, and a scale, are chosen on


def kinds_of(model: Model, images: UInt8[np.ndarray, "n c h w"]) -> dict[str, Float[np.ndarray, "n values"]]:
    """The features of images, flat; and of the pooled ones the mean over all quarters."""
    found = features(model, images)
    means = {f"{name}, mean": array.mean((2, 3)) for name, array in found.items() if array.shape[2:] == (2, 2)}
    return {name: array.reshape(len(images), -1).astype(np.float32) for name, array in {**found, **means}.items()}


def flat(images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n values"]:
    """Pixels on [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


class Parts(NamedTuple):
    """Features, or classes, of images to train on, to choose by, and to test on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def accuracy(values: Parts, labels: Parts) -> float:
    """Percentage of test images that a linear classifier gets right."""

    centre, each = values.train.mean(0), values.train.std(0)
    reached = []
    for scale in (np.where(each > 0, each, 1), each.mean()):
        scaled = Parts(*((part - centre) / scale for part in values))
        classifier = LogisticRegression(C=0.1, max_iter=100).fit(scaled.train, labels.train)
        reached.append(
            [classifier.score(scaled.validation, labels.validation), classifier.score(scaled.test, labels.test)]
        )
    return round(100 * max(reached)[1], 1)


def probes(model: Model, parts: Sequence[Labelled]) -> Iterator[dict[str, object]]:
    """A line for each kind of feature."""
    labels = Parts(*(part.labels for part in parts if part.labels is not None))
    pixels = Parts(*(flat(part.images) for part in parts))
    yield {"on": "pixels", "numbers": pixels.train.shape[1], "accuracy": accuracy(pixels, labels)}
    kinds = [kinds_of(model, part.images) for part in parts]
    largest = max(own.shape[1] for own in kinds[0].values())
    components = PCA(min(*pixels.train.shape, largest), random_state=0).fit(pixels.train)
    linear = [components.transform(own) for own in pixels]
    for name, own in kinds[0].items():
        numbers = own.shape[1]
        beside = accuracy(Parts(*(part[:, :numbers] for part in linear)), labels)
        ours = accuracy(Parts(*(part[name] for part in kinds)), labels)
        yield {"on": name, "numbers": numbers, "accuracy": ours, "pca": beside}


def retrieval(model: Model, train: Labelled, test: Labelled) -> dict[str, object]:
    """How often the nearest images are of the class of the image given."""
    asked = test.images[:_QUERIES]
    ours, theirs = (model.encode(images) for images in (asked, train.images))
    decode = model.vqvae.network.levels.decode
    distances = {
        "vectors": torch.cdist(decode(ours).flatten(1), decode(theirs).flatten(1)),
        "pixels": torch.cdist(torch.from_numpy(flat(asked)), torch.from_numpy(flat(train.images))),
    }
    if model.vqvae.config.model.is_discrete:
        first, second = (torch.cat([level.flatten(1) for level in codes], 1) for codes in (ours, theirs))
        distances["positions that differ"] = torch.stack([(second != one).sum(1) for one in first]).float()
    assert train.labels is not None and test.labels is not None
    classes, wanted = train.labels, test.labels[:_QUERIES, None]
    return {name: _of_their_class(own.topk(_NEAREST, 1, largest=False).indices.numpy(), classes, wanted)
            for name, own in distances.items()}  # fmt: skip


def _of_their_class(
    found: Int[np.ndarray, "n k"], classes: Int[np.ndarray, "m"], wanted: Int[np.ndarray, "n 1"]
) -> float:
    return round(100 * float((classes[found] == wanted).mean()), 1)


def psnr(originals: UInt8[np.ndarray, "n c h w"], others: np.ndarray) -> float:
    """Of the mean squared error over all images, in dB."""
    error = np.square(originals.astype(np.float64) - others).mean() / 255**2
    return round(-10 * math.log10(error), 2)


def non_local_means(
    images: UInt8[np.ndarray, "n c h w"], deviation: float, strength: float
) -> Float[np.ndarray, "n c h w"]:
    """Each image by itself, its pixels from 0 to 255."""
    from skimage.restoration import denoise_nl_means  # a dependency of this benchmark alone

    found = []
    for image in images / 255:
        # Of an image with one channel it wants no axis of channels.
        planes, axis = (image[0], None) if len(image) == 1 else (image, 0)
        found.append(denoise_nl_means(planes, patch_size=5, patch_distance=6, h=strength * deviation, sigma=deviation,
                                      fast_mode=False, channel_axis=axis).reshape(image.shape))  # fmt: skip
    return 255 * np.stack(found).clip(0, 1)


def denoised(model: Model, validation: Labelled, test: Labelled) -> dict[str, object]:
    """PSNR by each method."""
    deviation = model.vqvae.config.model.denoise
    tried, noisy = (
        add_own_noise(torch.from_numpy(images.copy()), deviation).numpy()
        for images in (validation.images[:_TRIED], test.images)
    )
    by_strength = {s: psnr(validation.images[:_TRIED], non_local_means(tried, deviation, s)) for s in _STRENGTHS}
    strength = max(by_strength, key=lambda s: by_strength[s])
    return {
        "deviation": deviation,
        "noisy": psnr(test.images, noisy),
        "reconstructed": psnr(test.images, model.reconstruct(noisy).numpy()),
        "clean, reconstructed": psnr(test.images, model.reconstruct(test.images).numpy()),
        "median": psnr(test.images, median_filter(noisy, (1, 1, 3, 3))),
        "non-local means": psnr(test.images, non_local_means(noisy, deviation, strength)),
        "strength": strength,
    }


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--n", default=5000, show_default=True, help="Training images.")
@click.option("--part", type=click.Choice(["probe", "retrieval", "denoised"]), help="One alone.")
def main(runs: tuple[Path, ...], n: int, part: str | None) -> None:
    """Measure."""
    launch = Launch({}, start(), Silent(), None)
    for run in runs:
        model = load(run)
        parts = read_parts(model.run, Source(), None, launch)
        train = parts.labelled(np.random.default_rng(0).permutation(parts.train)[:n])
        validation = parts.validation(_CHOSEN_ON)
        if part in (None, "probe"):
            for line in probes(model, (train, validation, parts.test)):
                click.echo(json.dumps({"run": run.name, "probe": line}))
        if part in (None, "retrieval"):
            click.echo(json.dumps({"run": run.name, "retrieval": retrieval(model, train, parts.test)}))
        if part in (None, "denoised") and model.vqvae.config.model.denoise:
            found = denoised(model, validation, parts.test)
            click.echo(json.dumps({"run": run.name, "denoised": found}))


if __name__ == "__main__":
    main()
