"""How far two sets of features lie apart: Fréchet and kernel distance, precision, recall, density, coverage.

All in float64. Large sets are compared in blocks, so that no matrix of all pairs is in memory.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pipeline.runs.evaluation import Figure

_BLOCK = 2**21  # pairs at a time: 16 MiB
_ROUNDING = 1e-12  # of squared distances, relative to the squared norms they are computed from


class Manifold(NamedTuple):
    """The fraction of samples within the manifold of the real images (precision), that of real images within the
    samples' manifold (recall), and what outliers move less: density and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance_of_gaussians(
    mean1: Float[np.ndarray, "d"],
    covariance1: Float[np.ndarray, "d d"],
    mean2: Float[np.ndarray, "d"],
    covariance2: Float[np.ndarray, "d d"],
) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), the squared distance of Heusel et al. 2017, equation 6.

    The trace of (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is symmetric, so that
    singular covariances give real numbers too.
    """
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * _roots(values)) @ vectors.T
    common = _roots(np.linalg.eigvalsh(root @ covariance2 @ root)).sum()
    difference = mean1 - mean2
    distance = difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2 * common
    return max(float(distance), 0.0)


def _roots(eigenvalues: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """Those that rounding made of zero count as zero: their roots would be as large as 1e-8 of the largest."""
    least = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max()
    return np.sqrt(np.where(eigenvalues > least, eigenvalues, 0))


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """The Fréchet distance of the Gaussians with the means and (unbiased) covariances of two sets; not a number where
    one has fewer than two elements. Its bias is of order d^2 / n, so compare sets of equal size alone."""
    if min(len(first), len(second)) < 2:
        return float("nan")
    (mean1, covariance1), (mean2, covariance2) = (
        (features.mean(0, np.float64), np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64)))
        for features in (first, second)
    )
    return frechet_distance_of_gaussians(mean1, covariance1, mean2, covariance2)


def kernel_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """The squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased, so that it may be below zero.

    The kernel distance of Binkowski et al. 2018 (KID), over all pairs rather than subsets of them; not a number where
    a set has fewer than two elements.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    x, y = (features.astype(np.float64) / np.sqrt(features.shape[1]) for features in (first, second))
    between = sum(_kernel_sum(rows, y) for rows, _ in _blocks(x, m))
    return _other_pairs(x) / (n * (n - 1)) + _other_pairs(y) / (m * (m - 1)) - 2 * between / (n * m)


def _other_pairs(x: Float[np.ndarray, "n d"]) -> float:
    """The kernel's sum over all pairs of different elements, half of which are those of the other half in turn."""
    whole = sum(_kernel_sum(rows, rows) + 2 * _kernel_sum(rows, later) for rows, later in _blocks(x, len(x)))
    return whole - float((((x * x).sum(1) + 1) ** 3).sum())


def _blocks(x: Float[np.ndarray, "n d"], others: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of x, some at a time, as pairs with so many others fit into memory; and all rows that come later."""
    size = max(1, _BLOCK // others)
    for start in range(0, len(x), size):
        yield x[start : start + size], x[start + size :]


def _kernel_sum(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    kernel = (x @ y.T + 1).ravel()
    return float(np.vdot(kernel * kernel, kernel))


def manifold(real: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], neighbours: int = 5) -> Manifold:
    """Precision and recall of Kynkaanniemi et al. 2019, density and coverage of Naeem et al. 2020.

    A set's manifold is the union of balls around its elements, each as far as the element's k-th nearest neighbour in
    the set, `neighbours` (of all the others where there are fewer); what lies on a ball's surface is outside. Of equal
    distributions coverage is near 1 - 2^-k, precision and recall below 1, and density 1. Not numbers where a set has
    fewer than two elements.
    """
    # Here and not above: the import takes seconds, which no other command should wait for.
    from sklearn.metrics import pairwise_distances_chunked

    if min(len(real), len(samples)) < 2:
        return Manifold(*4 * (float("nan"),))
    centre = real.mean(0, np.float64)  # differences of small numbers are the more exact
    real, samples = real - centre, samples - centre
    real_radii, sample_radii = _squared_radii(real, neighbours), _squared_radii(samples, neighbours)
    balls = np.zeros(len(samples))  # of real images, that each sample lies in
    start = recalled = covered = 0
    memory = _BLOCK * 8 / 2**20
    for distances in pairwise_distances_chunked(real, samples, working_memory=memory, squared=True):
        within = distances < real_radii[start : start + len(distances), None]
        balls += within.sum(0)
        covered += int(within.any(1).sum())
        recalled += int((distances < sample_radii).any(1).sum())
        start += len(distances)
    k = min(neighbours, len(real) - 1)
    return Manifold(float((balls > 0).mean()), recalled / len(real), float(balls.mean()) / k, covered / len(real))


def _squared_radii(features: Float[np.ndarray, "n d"], neighbours: int) -> Float[np.ndarray, "n"]:
    """Squared distances to the k-th nearest other element, less what rounding may add to a distance, so that elements
    at exactly this distance, copies above all, are never inside."""
    from sklearn.neighbors import NearestNeighbors

    k = min(neighbours, len(features) - 1)
    radii = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features).kneighbors()[0][:, -1]
    norms = np.sqrt((features * features).sum(1))
    return radii**2 - _ROUNDING * (2 * norms + radii) ** 2


def jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    real: np.ndarray,
    samples: np.ndarray,
    groups: int = 10,
) -> dict[str, Figure]:
    """The figures of two sets, each with its delete-a-group jackknife standard error.

    Every `groups`-th element of both sets is a group, so that an order by class does not matter; group after group is
    left out of both sets, and the error is sqrt((g - 1) / g sum_i (t_i - mean t)^2) (Efron & Stein 1981; Wolter 2007,
    chapter 4). There are fewer groups where a set has fewer elements, and no error where there is one group, or a
    figure that is not a number without some group. It costs `groups` times what the statistic does.
    """
    g = min(groups, len(real), len(samples))
    whole = statistic(real, samples)
    if g < 2:
        return {name: Figure(value) for name, value in whole.items()}
    parts = [statistic(_without(real, group, g), _without(samples, group, g)) for group in range(g)]
    return {name: Figure(value, _error([part[name] for part in parts])) for name, value in whole.items()}


def _without(elements: np.ndarray, group: int, groups: int) -> np.ndarray:
    return elements[np.arange(len(elements)) % groups != group]


def _error(values: list[float]) -> float | None:
    spread = float(np.std(values)) * np.sqrt(len(values) - 1)
    return float(spread) if np.isfinite(spread) else None
