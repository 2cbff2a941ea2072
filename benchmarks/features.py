"""What codes and encoder outputs are worth elsewhere: to a linear classifier, to find alike images, against noise.

    pip install scikit-image
    python -m benchmarks.features RUN... [--n 5000]

Prints JSON lines for each run. `probe`: of test images the percentage that logistic regression (standardised features,
C = 0.1) gets right after N training images, on each kind of feature, on principal components of as many numbers fitted
to the same images, and on raw pixels. `retrieval`: of 500 test images the percentage of the ten nearest of these
training images that are of their class, by the vectors of codes (as `gen nearest` has it), by the number of positions
whose codes differ, and by pixels. Of a run with --denoise, `denoised`: PSNR (dB) of test images with noise of that
standard deviation, as they are, reconstructed, and by a median filter of 3x3 pixels and non-local means (Buades et al.
2005; the strength the best of three on validation images).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import median_filter  # type: ignore[import-untyped]  # scipy has no types
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import Model, Silent, features, load
from pipeline.evaluation.parts import Labelled, Source, read_parts
from pipeline.processes import start
from pipeline.training.launch import Launch
from stage1_vqvae.noise import add_own_noise

_QUERIES, _NEAREST = 500, 10
_STRENGTHS = (0.6, 0.8, 1.0)  # of non-local means, over the standard deviation of the noise
_TRIED = 200  # images that a strength is chosen on


def kinds_of(model: Model, images: UInt8[np.ndarray, "n c h w"]) -> dict[str, Float[np.ndarray, "n values"]]:
    """The features of images, flat; and of the pooled ones the mean over all quarters."""
    found = features(model, images)
    means = {f"{name}, mean": array.mean((2, 3)) for name, array in found.items() if array.shape[2:] == (2, 2)}
    return {name: array.reshape(len(images), -1).astype(np.float32) for name, array in {**found, **means}.items()}


def flat(images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n values"]:
    """Pixels on [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def accuracy(train: np.ndarray, test: np.ndarray, labels: tuple[np.ndarray, np.ndarray]) -> float:
    """Percentage of test images that a linear classifier gets right."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    return round(100 * classifier.fit(train, labels[0]).score(test, labels[1]), 1)


def probes(model: Model, train: Labelled, test: Labelled) -> Iterator[dict[str, object]]:
    """A line for each kind of feature."""
    assert train.labels is not None and test.labels is not None
    labels = (train.labels, test.labels)
    pixels = flat(train.images), flat(test.images)
    yield {"on": "pixels", "numbers": pixels[0].shape[1], "accuracy": accuracy(*pixels, labels)}
    ours, theirs = kinds_of(model, train.images), kinds_of(model, test.images)
    components = PCA(min(pixels[0].shape[1], max(own.shape[1] for own in ours.values())), random_state=0)
    linear = components.fit_transform(pixels[0]), components.transform(pixels[1])
    for name, own in ours.items():
        numbers = own.shape[1]
        beside = accuracy(linear[0][:, :numbers], linear[1][:, :numbers], labels)
        yield {"on": name, "numbers": numbers, "accuracy": accuracy(own, theirs[name], labels), "pca": beside}


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
    return {name: _share(own.topk(_NEAREST, 1, largest=False).indices.numpy(), classes, wanted)
            for name, own in distances.items()}  # fmt: skip


def _share(found: Int[np.ndarray, "n k"], classes: Int[np.ndarray, "m"], wanted: Int[np.ndarray, "n 1"]) -> float:
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

    denoised = [
        denoise_nl_means(image / 255, patch_size=5, patch_distance=6, h=strength * deviation, sigma=deviation,
                         fast_mode=True, channel_axis=0)
        for image in images
    ]  # fmt: skip
    return 255 * np.stack(denoised).clip(0, 1)


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
def main(runs: tuple[Path, ...], n: int) -> None:
    """Measure."""
    launch = Launch({}, start(), Silent(), None)
    for run in runs:
        model = load(run)
        parts = read_parts(model.run, Source(), None, launch)
        train = parts.labelled(np.random.default_rng(0).permutation(parts.train)[:n])
        for line in probes(model, train, parts.test):
            click.echo(json.dumps({"run": run.name, "probe": line}))
        click.echo(json.dumps({"run": run.name, "retrieval": retrieval(model, train, parts.test)}))
        if model.vqvae.config.model.denoise:
            found = denoised(model, parts.validation(_TRIED), parts.test)
            click.echo(json.dumps({"run": run.name, "denoised": found}))


if __name__ == "__main__":
    main()
