"""How far two sets of features lie apart: Fréchet and kernel distance, precision, recall, density, coverage.

All in float64. Large sets are compared in blocks, so that no matrix of all pairs is in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

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
    [distance] = _kernel_distances(first, second, groups=1)
    return distance


def kernel_figure(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], groups: int = 10) -> Figure:
    """What `jackknife` gives of the kernel distance, from each pair once."""
    return _figure(_kernel_distances(first, second, _at_most(groups, first, second)))


def _kernel_distances(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], groups: int) -> list[float]:
    """Over all, and without each group: what is left of the kernel's sums over the pairs of any two groups."""
    x, y = (
        [features[group::groups].astype(np.float64) / np.sqrt(features.shape[1]) for group in range(groups)]
        for features in (first, second)
    )
    between = np.array([[_kernel_sum(a, b) for b in y] for a in x])
    xx, yy = _sums_of_others(x), _sums_of_others(y)
    found = []
    for left_out in _left_out(groups):
        kept = [group for group in range(groups) if group != left_out]
        n, m = (sum(len(parts[group]) for group in kept) for parts in (x, y))
        of_first, of_second, of_both = (sums[np.ix_(kept, kept)].sum() for sums in (xx, yy, between))
        enough = min(n, m) > 1
        distance = of_first / (n * (n - 1)) + of_second / (m * (m - 1)) - 2 * of_both / (n * m) if enough else np.nan
        found.append(float(distance))
    return found


def _sums_of_others(parts: Sequence[Float[np.ndarray, "n d"]]) -> Float[np.ndarray, "g g"]:
    """The kernel's sums over the pairs of different elements of any two of the parts of a set."""
    sums = np.zeros((len(parts), len(parts)))
    for i, x in enumerate(parts):
        sums[i, i] = _kernel_sum(x, x) - (((x * x).sum(1) + 1) ** 3).sum()
        for j in range(i):
            sums[i, j] = sums[j, i] = _kernel_sum(x, parts[j])
    return sums


def _kernel_sum(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    total, rows = 0.0, max(1, _BLOCK // len(y))
    for start in range(0, len(x), rows):
        kernel = (x[start : start + rows] @ y.T + 1).ravel()
        total += float(np.vdot(kernel * kernel, kernel))
    return total


def manifold(real: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], neighbours: int = 5) -> Manifold:
    """Precision and recall of Kynkäänniemi et al. 2019, density and coverage of Naeem et al. 2020.

    A set's manifold is the union of balls around its elements, each as far as the element's k-th nearest neighbour in
    the set, `neighbours` (of all the others where there are fewer); what lies on a ball's surface is outside. Of equal
    distributions coverage is near 1 - 2^-k, precision and recall below 1, and density 1. Not numbers where a set has
    fewer than two elements.
    """
    [found] = _manifolds(real, samples, neighbours, groups=1)
    return found


def manifold_figures(
    real: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], neighbours: int = 5, groups: int = 10
) -> dict[str, Figure]:
    """What `jackknife` gives of the manifold, from the distance of each pair once. The jackknife errs upwards, of these
    figures by up to a factor of two, as 20 draws of two sets of 400 in 8 dimensions have shown."""
    found = _manifolds(real, samples, neighbours, _at_most(groups, real, samples))
    return {name: _figure([getattr(one, name) for one in found]) for name in Manifold._fields}


def _manifolds(
    real: Float[np.ndarray, "n d"], samples: Float[np.ndarray, "m d"], neighbours: int, groups: int
) -> list[Manifold]:
    """Over all, and without each group."""
    # Here and not above: the import takes seconds, which no other command should wait for.
    from sklearn.metrics import pairwise_distances_chunked

    n, m, ways = len(real), len(samples), _left_out(groups)
    if min(n, m) < 2:
        return [Manifold(*4 * (np.nan,)) for _ in ways]
    centre = real.mean(0, np.float64)  # differences of small numbers are the more exact
    real, samples = real - centre, samples - centre
    real_radii, sample_radii = (_squared_radii(features, neighbours, groups) for features in (real, samples))
    balls = np.zeros((len(ways), m))  # of real images, that each sample lies in
    covered, recalled = np.zeros((2, len(ways), n), bool)
    start, memory = 0, _BLOCK * 8 / 2**20
    for distances in pairwise_distances_chunked(real, samples, working_memory=memory, squared=True):
        rows = slice(start, start + len(distances))
        i, j = np.nonzero(distances < real_radii[:, rows].max(0)[:, None])
        p, q = np.nonzero(distances < sample_radii.max(0))
        for way, left_out in enumerate(ways):
            inside = (distances[i, j] < real_radii[way, start + i]) & (j % groups != left_out)
            balls[way] += np.bincount(j[inside], minlength=m)
            covered[way, start + i[inside]] = True
            recalled[way, start + p[distances[p, q] < sample_radii[way, q]]] = True
        start = rows.stop
    return [
        _manifold_without(left_out, groups, neighbours, *way)
        for left_out, *way in zip(ways, balls, covered, recalled, strict=True)
    ]


def _manifold_without(
    left_out: int,
    groups: int,
    neighbours: int,
    balls: Float[np.ndarray, "m"],
    covered: Bool[np.ndarray, "n"],
    recalled: Bool[np.ndarray, "n"],
) -> Manifold:
    real, samples = (np.arange(len(of)) % groups != left_out for of in (covered, balls))
    if min(real.sum(), samples.sum()) < 2:
        return Manifold(*4 * (np.nan,))
    density = balls[samples].mean() / min(neighbours, real.sum() - 1)
    precision, recall, coverage = (balls[samples] > 0).mean(), recalled[real].mean(), covered[real].mean()
    return Manifold(float(precision), float(recall), float(density), float(coverage))


def _squared_radii(features: Float[np.ndarray, "n d"], neighbours: int, groups: int) -> Float[np.ndarray, "w n"]:
    """Squared distances to the k-th nearest other element, over all and without each group, whose own are below 0.

    Less what rounding may add to a distance, so that elements at exactly this distance, copies above all, are never
    inside. Without a group the k-th nearest is mostly found among the nearest of all.
    """
    from sklearn.neighbors import NearestNeighbors

    group, ways = np.arange(len(features)) % groups, _left_out(groups)
    norms = np.sqrt((features * features).sum(1))
    distances, nearest = (
        NearestNeighbors(n_neighbors=min(2 * neighbours + 5, len(features) - 1), algorithm="brute")
        .fit(features)
        .kneighbors()
    )
    radii = np.full((len(ways), len(features)), -1.0)
    for way, left_out in enumerate(ways):
        kept = group != left_out
        k = min(neighbours, int(kept.sum()) - 1)
        reached = kept[nearest].cumsum(1) >= k
        radius = np.take_along_axis(distances, reached.argmax(1)[:, None], 1)[:, 0]
        far = kept & ~reached[:, -1]
        if far.any():  # each is its own nearest, at 0
            others = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(features[kept])
            radius[far] = others.kneighbors(features[far])[0][:, k]
        radii[way, kept] = (radius**2 - _ROUNDING * (2 * norms + radius) ** 2)[kept]
    return radii


def jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    real: np.ndarray,
    samples: np.ndarray,
    groups: int = 10,
) -> dict[str, Figure]:
    """The figures of two sets, each with its delete-a-group jackknife standard error.

    Every `groups`-th element of both sets is a group, so that an order by class does not matter; group after group is
    left out of both sets, and the error is sqrt((g - 1) / g sum_i (t_i - mean t)^2), on average none too small (Efron &
    Stein 1981; of groups Wolter 2007, chapter 4). There are fewer groups where a set has fewer elements, and no error
    where there is one group, or a figure that is not a number without some group. It costs `groups` times what the
    statistic does; `kernel_figure` and `manifold_figures` cost once.
    """
    g = _at_most(groups, real, samples)

    def without(elements: np.ndarray, group: int) -> np.ndarray:
        return elements[np.arange(len(elements)) % g != group]

    found = [statistic(without(real, group), without(samples, group)) for group in _left_out(g)]
    return {name: _figure([one[name] for one in found]) for name in found[0]}


def _at_most(groups: int, *sets: np.ndarray) -> int:
    """So many groups, or as many as the smallest set has elements."""
    return max(1, min(groups, *map(len, sets)))


def _left_out(groups: int) -> list[int]:
    """The groups that are left out: none, and then each, but where all elements are one group."""
    return [-1, *range(groups)] if groups > 1 else [-1]


def _figure(values: Sequence[float]) -> Figure:
    """Of a value over all and those without each group."""
    whole, *parts = values
    error = float(np.std(parts) * np.sqrt(len(parts) - 1)) if parts else np.nan
    return Figure(whole, error if np.isfinite(error) else None)
