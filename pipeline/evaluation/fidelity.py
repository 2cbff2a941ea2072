"""How near reconstructions are to their images, and what linear ones reach: principal components."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

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
    # Here and not above: the import takes seconds, which no other command should wait for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    windows_fit = min(images.shape[-2:]) >= _WINDOW
    error = similarity = 0.0
    for start in range(0, len(images), _BATCH):
        first, second = (
            torch.from_numpy(part[start : start + _BATCH] / np.float32(255)) for part in (images, restored)
        )
        error += float((first - second).double().square().sum())
        if windows_fit:
            mean = torch.as_tensor(structural_similarity_index_measure(second, first, data_range=1.0))
            similarity += len(first) * float(mean)
    mse = error / images.size
    psnr = float(-10 * np.log10(max(mse, 1e-12)))
    return Fidelity(mse / variance, psnr, similarity / len(images) if windows_fit else None)


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
