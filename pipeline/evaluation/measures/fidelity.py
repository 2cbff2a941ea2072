"""How near reconstructions are to their images, one by one and together, and what linear ones reach."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8

_BATCH = 256
_WINDOW = 11  # pixels
_MOST_FITTED = 2**28  # pixels, of which there are copies: 1 GiB each in float32


class Fidelity(NamedTuple):
    """Over all images: squared error over the data's variance, PSNR (dB) of the mean squared error, and mean SSIM,
    which images smaller than its windows do not have."""

    nmse: float
    psnr: float
    ssim: float | None


def fidelity(images: UInt8[np.ndarray, "n c h w"], restored: UInt8[np.ndarray, "n c h w"], variance: float) -> Fidelity:
    """Compare images with their reconstructions; `variance` is that of the data's pixels on [0, 1].

    SSIM as Wang et al. 2004 have it: Gaussian windows of 11 pixels, standard deviation 1.5.
    """
    mse = float(squared_errors(images, restored).mean())
    similar = similarities(images, restored)
    psnr = float(-10 * np.log10(max(mse, 1e-12)))
    return Fidelity(mse / variance, psnr, None if similar is None else float(similar.mean()))


def squared_errors(
    images: UInt8[np.ndarray, "n c h w"], restored: UInt8[np.ndarray, "n c h w"]
) -> Float[np.ndarray, "n"]:
    """The squared error of each image, as a mean over its values on [0, 1]."""
    return np.concatenate([((a - b) ** 2).mean((1, 2, 3)) for a, b in _batches(images, restored)])


def similarities(
    images: UInt8[np.ndarray, "n c h w"], restored: UInt8[np.ndarray, "n c h w"]
) -> Float[np.ndarray, "n"] | None:
    """The SSIM of each image and its reconstruction; None where images are smaller than its windows."""
    # Here and not above: the import takes seconds, which no other command should wait for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[-2:]) < _WINDOW:
        return None

    def of_batch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        given, target = (torch.from_numpy(batch.astype(np.float32)) for batch in (second, first))
        found = structural_similarity_index_measure(given, target, data_range=1.0, reduction="none")
        return torch.as_tensor(found).reshape(-1).double().numpy()

    return np.concatenate([of_batch(*batch) for batch in _batches(images, restored)])


def high_frequency_power(images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n"]:
    """The part of each image's variance, on [0, 1], that lies above half the Nyquist frequency: at more than a quarter
    of a cycle a pixel, along whatever direction, of the Fourier transform of the mean over the channels.

    That of reconstructions over that of their images is 1 where detail is kept and near 0 where it is blurred. For a
    whole set divide sum by sum.
    """
    height, width = images.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))

    def of_batch(batch: np.ndarray) -> np.ndarray:
        spectrum = np.abs(np.fft.fft2(batch.mean(1))) ** 2 / (height * width) ** 2
        return cast(np.ndarray, spectrum[:, frequency > 0.25].sum(1))

    return np.concatenate([of_batch(batch) for (batch,) in _batches(images)])


def _batches(*sets: UInt8[np.ndarray, "n c h w"]) -> Iterator[tuple[np.ndarray, ...]]:
    """The images of several sets, a few at a time, on [0, 1]; one batch without any where there are none."""
    for start in range(0, max(1, len(sets[0])), _BATCH):
        yield tuple(images[start : start + _BATCH] / 255 for images in sets)


def principal_components(
    train: UInt8[np.ndarray, "n c h w"], images: UInt8[np.ndarray, "m c h w"], components: int
) -> UInt8[np.ndarray, "m c h w"] | None:
    """Reconstructions from so many principal components of the training images, of as many as fit into memory; None
    where those have not as many."""
    from sklearn.decomposition import PCA  # takes as long

    flat = train.reshape(len(train), -1)
    fitted = flat[: _MOST_FITTED // flat.shape[1]].astype(np.float32)
    if components >= min(fitted.shape):
        return None
    pca = PCA(components, random_state=0).fit(fitted)
    parts = np.array_split(images.reshape(len(images), -1), max(1, len(images) // _BATCH))
    restored = np.concatenate([pca.inverse_transform(pca.transform(part.astype(np.float32))) for part in parts])
    return restored.round().clip(0, 255).astype(np.uint8).reshape(images.shape)
