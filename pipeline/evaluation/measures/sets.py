"""How near two sets of images are, in the features of a network."""

import numpy as np
from jaxtyping import Float

from pipeline.evaluation.measures.distances import frechet_distance, jackknife, kernel_figure, manifold_figures
from pipeline.runs.evaluation import Figure

LEAST = 20  # images of a set

_LEAST_A_FEATURE = 10  # images: the covariance of fewer is mostly noise
_LEAST_FOR_FRECHET = 1000  # images: its bias falls with their number, and is no longer most of it


def set_figures(real: Float[np.ndarray, "n d"], others: Float[np.ndarray, "n d"]) -> dict[str, Figure]:
    """Fréchet and kernel distance, precision, recall, density and coverage of a set against real images, by features of
    a judge: those of them that so many images can tell, none of fewer than 20."""
    images, features = min(len(real), len(others)), real.shape[1]
    if images < LEAST:
        return {}
    found = _frechet("frechet_distance", real, others) | {"kernel_distance": kernel_figure(real, others)}
    return found | (manifold_figures(real, others) if images >= _LEAST_A_FEATURE * features else {})


def field_figures(real: Float[np.ndarray, "n 2048"], others: Float[np.ndarray, "n 2048"]) -> dict[str, Figure]:
    """FID and KID, by the features of Inception-v3: of many images, of 20 at least."""
    if min(len(real), len(others)) < LEAST:
        return {}
    return _frechet("fid", real, others) | {"kid": kernel_figure(real, others)}


def _frechet(name: str, real: Float[np.ndarray, "n d"], others: Float[np.ndarray, "n d"]) -> dict[str, Figure]:
    if min(len(real), len(others)) < images_for_frechet(real.shape[1]):
        return {}
    return jackknife(lambda first, second: {name: frechet_distance(first, second)}, real, others)


def images_for_frechet(features: int) -> int:
    """How many images of each set a Fréchet distance takes."""
    return max(_LEAST_FOR_FRECHET, _LEAST_A_FEATURE * features)


def left_out(images: int, features: int) -> str | None:
    """Which figures by a judge so many images cannot tell, and why."""
    if images < LEAST:
        return f"{images:,} images of each set are too few to compare sets, which takes {LEAST}"
    needed = images_for_frechet(features)
    if images >= needed:
        return None
    alone = images < _LEAST_A_FEATURE * features
    missing = "Fréchet distance, precision, recall, density or coverage" if alone else "Fréchet distance"
    reason = f"{_LEAST_A_FEATURE} for each of {features} features" if alone else f"{needed:,}"
    return f"no {missing}: {images:,} images of each set are too few, it takes {reason}"
