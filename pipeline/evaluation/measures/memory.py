"""Does a model repeat what it was trained on? The nearest training image of each sample, and equal code maps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from pipeline.data.image_set import images_at_a_time
from pipeline.reporting import Reporter
from stage1_vqvae import Codes


class Nearest(NamedTuple):
    """Of each image the nearest one trained on: the root of the mean squared difference of pixel values on [0, 1], and
    its index."""

    distances: Float[np.ndarray, "n"]
    indices: Int[np.ndarray, "n"]


def nearest_trained(
    images: UInt8[np.ndarray, "n c h w"],
    trained: UInt8[np.ndarray, "all c h w"],
    indices: Int[np.ndarray, "m"],
    device: torch.device,
    reporter: Reporter,
) -> Nearest:
    """The nearest to each image among `trained[indices]`; a part of either is in memory at a time."""
    best = Nearest(np.full(len(images), np.inf), np.zeros(len(images), np.int64))
    size = images_at_a_time(trained)
    for step in reporter.steps(range(-(-len(indices) // size)), "nearest"):
        part = indices[step * size : step * size + size]
        there = _flat(trained[part], device)
        lengths = there.square().sum(1)
        for start in range(0, len(images), size):
            own = slice(start, start + size)
            # The squared distance but for the length of the image itself, which decides nothing.
            values, rows = (
                found.cpu().numpy() for found in (lengths - 2 * _flat(images[own], device) @ there.T).min(1)
            )
            nearer = values < best.distances[own]
            best.distances[own][nearer], best.indices[own][nearer] = values[nearer], part[rows[nearer]]
    pairs = zip(images, best.indices, strict=True)  # again, as products in float32 lose what small differences are
    exact = [np.square(image / 255 - trained[index] / 255).mean() for image, index in pairs]
    return Nearest(np.sqrt(exact), best.indices)


def _flat(images: UInt8[np.ndarray, "n c h w"], device: torch.device) -> Float[torch.Tensor, "n values"]:
    return torch.from_numpy(np.array(images).reshape(len(images), -1)).to(device).float() / 255


def repeats(codes: Codes, trained: Sequence[Codes]) -> Bool[np.ndarray, "n"]:
    """Which code maps, of all levels together, equal one of those trained on, of which there may be several views, and
    more than memory holds."""
    ours = _as_bytes(codes)
    wanted = set(ours)
    known = {one for view in trained for one in _as_bytes(view) if one in wanted}
    return np.array([one in known for one in ours])


def _as_bytes(codes: Codes) -> list[bytes]:
    rows = np.concatenate([level.flatten(1).to(torch.int32).numpy() for level in codes], 1)
    return [row.tobytes() for row in rows]
