"""The networks of the field, by which papers compare images: Inception-v3, as FID has it, and LPIPS.

Their weights are published files, downloaded when first used into torch's cache, and checked each time.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.published_weights import published_weights
from pipeline.reporting import Reporter

SMALLEST_LPIPS = 31  # pixels: of smaller images AlexNet's second pooling has no window
_BATCH = 64


class InceptionFeatures:
    """Inception-v3 on a device."""

    def __init__(self, network: nn.Module, device: torch.device, reporter: Reporter) -> None:
        self._network, self._device, self._reporter = network.to(device), device, reporter

    def features(self, images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n 2048"]:
        """The 2,048 features after average pooling, float64; grey images count as three equal channels."""

        def of_batch(start: int) -> Tensor:
            (features,) = self._network(_colour(images, start).to(self._device))
            return cast(Tensor, features)

        return _in_batches(of_batch, len(images), 2048, self._reporter, "Inception")


def inception(device: torch.device, reporter: Reporter) -> InceptionFeatures:
    """Inception-v3 as torch-fidelity has it: weights, resizing and pooling of the TensorFlow network of Heusel et al.
    2017, so that the Fréchet distance of its features is FID. Raises WeightsUnavailableError."""
    # Here and not above: the import takes seconds, which no other command should wait for.
    from torch_fidelity import feature_extractor_inceptionv3 as published

    path = published_weights(published.URL_INCEPTION_V3, reporter)
    network = published.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    )
    return InceptionFeatures(network, device, reporter)


def lpips_of(
    images: UInt8[np.ndarray, "n c h w"],
    restored: UInt8[np.ndarray, "n c h w"],
    device: torch.device,
    reporter: Reporter,
) -> Float[np.ndarray, "n"]:
    """LPIPS of each image and its reconstruction: distance in AlexNet's features, weighted by what people see (Zhang et
    al. 2018, version 0.1). Grey images count as three equal channels.

    Raises WeightsUnavailableError, and UsageError where images are smaller than SMALLEST_LPIPS.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights

    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST_LPIPS:
        raise UsageError(f"LPIPS needs images of {SMALLEST_LPIPS}x{SMALLEST_LPIPS} pixels; these have {width}x{height}")
    published_weights(AlexNet_Weights.DEFAULT.url, reporter)
    network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device)

    def of_batch(start: int) -> Tensor:
        first, second = (_colour(part, start).to(device) / 255 for part in (images, restored))
        return cast(Tensor, network(first, second, normalize=True)).reshape(-1, 1)

    return _in_batches(of_batch, len(images), 1, reporter, "LPIPS")[:, 0]


def _colour(images: UInt8[np.ndarray, "n c h w"], start: int) -> UInt8[Tensor, "m 3 h w"]:
    batch = torch.from_numpy(np.array(images[start : start + _BATCH]))
    return batch if batch.shape[1] == 3 else repeat(batch, "m 1 h w -> m 3 h w")


def _in_batches(
    of_batch: Callable[[int], Tensor], n: int, width: int, reporter: Reporter, description: str
) -> Float[np.ndarray, "n d"]:
    """What a network makes of all images, in float32 without TF32, on any device."""
    found = np.empty((n, width))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for step in reporter.steps(range(-(-n // _BATCH)), description):
            found[step * _BATCH : (step + 1) * _BATCH] = of_batch(step * _BATCH).cpu().numpy()
    return found
