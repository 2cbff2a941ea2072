"""Two sets of features compared: closed forms, toys whose answer is known, and independent computations."""

import numpy as np
import pytest

from pipeline.evaluation.measures import distances
from pipeline.evaluation.measures.distances import (
    Manifold,
    frechet_distance,
    frechet_distance_of_gaussians,
    jackknife,
    kernel_distance,
    kernel_figure,
    manifold,
    manifold_figures,
)
from pipeline.runs.evaluation import Figure


def draws(seed: int, n: int, width: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(n, width))


# Fréchet distance

ROTATION = np.array([[0.6, -0.8], [0.8, 0.6]])


def between(covariance1: np.ndarray, covariance2: np.ndarray, shift: tuple[float, ...] = (0, 0)) -> float:
    mean = np.array(shift, float)
    return frechet_distance_of_gaussians(np.zeros_like(mean), covariance1, mean, covariance2)


def test_frechet_distance_of_diagonal_covariances_is_that_of_the_deviations() -> None:
    assert between(np.diag([4.0, 9.0]), np.diag([1.0, 16.0]), (3, 4)) == pytest.approx(25 + 1 + 1, abs=1e-6)


def test_frechet_distance_of_commuting_covariances_is_that_of_their_eigenvalues() -> None:
    first, second = (ROTATION @ np.diag(values) @ ROTATION.T for values in ([4.0, 9.0], [1.0, 16.0]))
    assert between(first, second, (3, 4)) == pytest.approx(25 + 1 + 1, abs=1e-6)


def test_frechet_distance_of_two_by_two_matrices_is_that_by_hand() -> None:
    """The root of a matrix M with positive eigenvalues has the trace sqrt(tr M + 2 sqrt(det M)), if it is 2x2."""
    first, second = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -2.0], [-2.0, 1.0]])
    product = first @ second  # [[8, -3], [-1, 1]]: trace 9, determinant 5
    assert product.tolist() == [[8, -3], [-1, 1]]
    expected = 1 + 5 + 6 - 2 * np.sqrt(9 + 2 * np.sqrt(5))
    assert between(first, second, (0, 1)) == pytest.approx(expected, abs=1e-6)
    assert between(second, first, (0, 1)) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_of_singular_covariances() -> None:
    """Of the lines along u and v: tr (S1 S2)^1/2 = |u.v|; and of points, that of their means."""
    u, v = draws(0, 2, 64)
    expected = u @ u + v @ v - 2 * abs(u @ v)
    assert between(np.outer(u, u), np.outer(v, v), (0,) * 64) == pytest.approx(expected, abs=1e-6)
    assert between(np.outer(u, u), np.outer(u, u), (0,) * 64) == pytest.approx(0, abs=1e-6)
    assert between(np.zeros((2, 2)), np.zeros((2, 2)), (3, 4)) == pytest.approx(25, abs=1e-6)
    assert between(np.zeros((2, 2)), np.diag([2.0, 3.0])) == pytest.approx(5, abs=1e-6)


def test_frechet_distance_of_ten_thousand_draws_is_near_that_of_their_distributions() -> None:
    shift, deviations = np.zeros(16), np.full(16, 0.3)
    shift[0], deviations[3] = np.sqrt(3), 1.3  # 3 of the distance, and 1
    first, second = draws(0, 10_000, 16, 0.3), draws(1, 10_000, 16) * deviations + shift
    assert frechet_distance(first, second) == pytest.approx(4, rel=0.02)


def test_frechet_distance_is_zero_of_equal_sets_and_no_number_of_one_image() -> None:
    features = draws(0, 20, 5).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert np.isnan(frechet_distance(features[:1], features))


# Kernel distance


def test_kernel_distance_is_that_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 40)  # several blocks
    x, y = draws(0, 13, 4), draws(1, 9, 4) + 0.5

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    xx = np.mean([kernel(x[i], x[j]) for i in range(13) for j in range(13) if i != j])
    yy = np.mean([kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)
    assert np.isnan(kernel_distance(x[:1], y))


def test_kernel_distance_of_one_distribution_is_unbiased() -> None:
    values = np.array([kernel_distance(draws(2 * i, 60, 8), draws(2 * i + 1, 60, 8)) for i in range(100)])
    assert abs(values.mean()) < 3 * values.std() / 10
    assert (values < 0).mean() > 0.3
    assert kernel_distance(draws(0, 60, 8), draws(1, 60, 8) + 1) > 10 * values.std()


# Precision, recall, density, coverage


def by_definition(real: np.ndarray, samples: np.ndarray, k: int) -> Manifold:
    """Naeem et al. 2020, equations 2 to 5, with sums over indicators, a pair at a time."""

    def radius(elements: np.ndarray, i: int) -> float:
        return float(sorted(np.linalg.norm(elements[i] - elements[j]) for j in range(len(elements)) if j != i)[k - 1])

    n, m = len(real), len(samples)
    apart = np.array([[np.linalg.norm(x - y) for y in samples] for x in real])
    of_real, of_samples = [radius(real, i) for i in range(n)], [radius(samples, j) for j in range(m)]
    precision = sum(any(apart[i, j] < of_real[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(apart[i, j] < of_samples[j] for j in range(m)) for i in range(n)) / n
    density = sum(apart[i, j] < of_real[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(min(apart[i]) < of_real[i] for i in range(n)) / n
    return Manifold(precision, recall, float(density), coverage)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_manifold_is_that_of_its_definitions(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 100)  # several blocks
    real, samples = draws(0, 40, 3), draws(1, 25, 3) + 2
    found = manifold(real, samples, k)
    assert found == pytest.approx(by_definition(real, samples, k))
    assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_equal_sets_lie_on_one_manifold() -> None:
    features = draws(0, 50, 8)
    found = manifold(features, features)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density >= 1  # each lies in its own ball too


def clusters(seed: int, modes: range, n: int = 40) -> np.ndarray:
    """So many draws of each of some far distant Gaussians."""
    return np.concatenate([draws(100 * seed + mode, n, 8) + 1000 * mode for mode in modes])


def test_dropped_modes_are_missed_by_recall_and_coverage() -> None:
    real = clusters(0, range(10))
    every, few = manifold(real, clusters(1, range(10))), manifold(real, clusters(1, range(3)))
    kept = manifold(clusters(0, range(3)), clusters(1, range(3)))
    assert few.precision == kept.precision and few.precision > 0.9 * every.precision
    assert few.recall == pytest.approx(0.3 * kept.recall)
    assert few.coverage == pytest.approx(0.3 * kept.coverage)
    only = manifold(real, real[:120])  # as they are, those kept are found whole
    assert (only.precision, only.recall, only.coverage) == (1, 0.3, 0.3)


def test_outliers_lower_precision_by_their_fraction_and_do_not_raise_density() -> None:
    real = draws(0, 80, 8)
    samples = np.concatenate([real[:60], 1000 + draws(1, 20, 8)])
    assert manifold(real, samples).precision == 0.75
    # An outlier among the real images has a ball that holds all samples: precision counts it, density hardly.
    spoiled = np.concatenate([real, np.full((1, 8), 30.0)])
    bad = draws(2, 80, 8) + 10
    before, after = manifold(real, bad), manifold(spoiled, bad)
    assert before.precision < 0.1 and after.precision == 1
    assert after.density < 0.25


def test_copies_of_one_image_cover_little() -> None:
    real = draws(0, 60, 8) + 300
    found = manifold(real, np.repeat(real[:1], 40, axis=0))
    assert (found.precision, found.recall) == (1, 0)
    inside = np.linalg.norm(real - real[0], axis=1)
    radii = np.sort(np.linalg.norm(real[:, None] - real, axis=2), axis=1)[:, 5]
    assert found.coverage == (inside < radii).mean() < 0.25


def test_elements_on_the_surface_of_a_ball_are_outside() -> None:
    """On a line of whole numbers the second neighbour is at 1, except at the ends: rounding decides nothing."""
    real = np.arange(20.0)[:, None] * np.ones((1, 3)) / 7 + 1e3
    found = manifold(real, real, 2)
    assert found.density == pytest.approx((18 * 1 + 2 * 2) / (2 * 20))


def test_of_few_elements_all_are_neighbours_and_one_has_none() -> None:
    real, samples = draws(0, 3, 2), draws(1, 30, 2)
    assert manifold(real, samples, 5) != manifold(real, samples, 1)
    two = manifold(draws(0, 2, 2), draws(0, 2, 2))
    assert two == pytest.approx(by_definition(draws(0, 2, 2), draws(0, 2, 2), 1))
    assert all(np.isnan(value) for value in manifold(real[:1], samples))


# Standard errors


def mean(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    return {"real": float(real.mean()), "difference": float(real.mean() - samples.mean())}


def test_the_error_of_a_mean_is_that_of_its_formula() -> None:
    real, samples = draws(0, 50, 1), draws(1, 50, 1)
    found = jackknife(mean, real, samples, groups=50)
    assert found["real"].value == real.mean()
    assert found["real"].error == pytest.approx(real.std(ddof=1) / np.sqrt(50))
    assert found["difference"].error == pytest.approx((real - samples).std(ddof=1) / np.sqrt(50))


def test_groups_do_not_follow_the_order_of_classes() -> None:
    """Ten classes one after another: groups of neighbours would count their differences as errors."""
    real = np.repeat(np.arange(10.0), 100) + draws(0, 1000, 1)[:, 0]
    error = jackknife(mean, real, real)["real"].error
    assert error is not None and 0 < error < 3 * 1 / np.sqrt(
        1000
    )  # of all ten groups, in each of which all classes are


def test_few_elements_make_few_groups_and_one_has_no_error() -> None:
    real = np.array([1.0, 3.0, 8.0])
    assert jackknife(mean, real, np.arange(20.0))["real"].error == pytest.approx(real.std(ddof=1) / np.sqrt(3))
    assert jackknife(mean, real[:1], real)["real"].error is None
    pair = jackknife(lambda a, b: {"kernel": kernel_distance(a, b)}, draws(0, 2, 4), draws(1, 2, 4))
    assert np.isfinite(pair["kernel"].value) and pair["kernel"].error is None


def test_the_error_of_frechet_distance_is_about_its_spread() -> None:
    def statistic(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
        return {"frechet": frechet_distance(real, samples), "kernel": kernel_distance(real, samples)}

    found = [jackknife(statistic, draws(2 * i, 200, 4), draws(2 * i + 1, 200, 4) + 0.5) for i in range(20)]
    for name in ("frechet", "kernel"):
        spread = np.std([figures[name].value for figures in found], ddof=1)
        errors = [float(figures[name].error or 0) for figures in found]
        assert 0.5 < np.sqrt(np.mean(np.square(errors))) / spread < 2


@pytest.mark.parametrize(("n", "m", "groups"), [(90, 61, 10), (61, 90, 7), (12, 9, 10), (40, 40, 2), (3, 3, 10)])
def test_errors_from_each_pair_once_are_those_of_the_jackknife(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, groups: int
) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 300)  # several blocks
    real, samples = draws(0, n, 3), draws(1, m, 3) + 1
    for k in (1, 5):
        expected = jackknife(lambda a, b: manifold(a, b, k)._asdict(), real, samples, groups)  # noqa: B023 - used at once
        assert_figures(manifold_figures(real, samples, k, groups), expected)
    expected = jackknife(lambda a, b: {"kernel": kernel_distance(a, b)}, real, samples, groups)
    assert_figures({"kernel": kernel_figure(real, samples, groups)}, expected)


def assert_figures(found: dict[str, Figure], expected: dict[str, Figure]) -> None:
    assert found.keys() == expected.keys()
    for name, figure in found.items():
        assert figure.value == pytest.approx(expected[name].value, rel=1e-9)
        assert figure.error is not None and figure.error == pytest.approx(expected[name].error, rel=1e-6, abs=1e-12)


def test_neighbours_of_one_group_are_replaced_by_the_next() -> None:
    """Copies in one group of every element: without the group all of the nearest neighbours known are gone."""
    few = draws(0, 20, 3)
    real = np.repeat(few, 2, axis=0)  # an element in an even place, and its copy in the odd one after it
    real[1::2] = few[:1] + 1e-3 * draws(1, 20, 3)  # but all those in odd places are one crowd
    expected = jackknife(lambda a, b: manifold(a, b)._asdict(), real, draws(2, 40, 3), 2)
    assert_figures(manifold_figures(real, draws(2, 40, 3), groups=2), expected)
