"""Distances against closed forms, SciPy and loops over pairs."""

import numpy as np
import pytest
import sklearn
from scipy import linalg, stats

from functa.evaluation import distances


def normal(shape, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=shape) * scale + shift


def gaussian(mean, covariance):
    return distances.Gaussian(np.asarray(mean), np.linalg.cholesky(covariance).T)


@pytest.mark.parametrize("shape", [(50, 4), (3, 7)])  # also fewer samples than dimensions
def test_fitted_gaussian_has_the_moments_of_its_samples(shape):
    samples = normal(shape)
    fitted = distances.fit_gaussian(samples)
    np.testing.assert_allclose(fitted.mean, samples.mean(0))
    np.testing.assert_allclose(fitted.root.T @ fitted.root, np.cov(samples.T), atol=1e-12)


def test_frechet_distance_equals_that_with_a_matrix_square_root():
    first, second = normal((200, 6), 1), normal((300, 6), 2, scale=1.5, shift=0.3)
    first[:, 0] += first[:, 1]
    c1, c2 = np.cov(first.T), np.cov(second.T)
    root = np.real(linalg.sqrtm(c1 @ c2))
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)
    first, second = map(distances.fit_gaussian, (first, second))
    assert distances.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_singular_covariances_is_exact():
    """Covariances of rank 2 in 40 dimensions, in orthogonal planes, do not overlap."""
    axes = np.linalg.qr(normal((40, 4)))[0].T
    rows = normal((30, 2))
    first, second = (distances.fit_gaussian(rows @ axes[part]) for part in ([0, 1], [2, 3]))
    squared_mean, variance = np.sum(rows.mean(0) ** 2), np.trace(np.cov(rows.T))
    assert distances.frechet_distance(first, second) == pytest.approx(
        2 * squared_mean + 2 * variance, rel=1e-12
    )
    assert 0 <= distances.frechet_distance(first, first) < 1e-12
    scaled = distances.fit_gaussian(rows @ axes[[0, 1]] * (1 + 1e-6))
    assert distances.frechet_distance(first, scaled) == pytest.approx(
        1e-12 * (squared_mean + variance), rel=0.01
    )


def slow_squared_mmd(x, y):
    """Gretton et al. 2012, equation 3, pair by pair."""
    n, k = x.shape
    total = 0.0
    for a in range(n):
        for b in range(n):
            if a != b:
                total += ((x[a] @ x[b] / k + 1) ** 3 + (y[a] @ y[b] / k + 1) ** 3) / (n * (n - 1))
            total -= 2 * (x[a] @ y[b] / k + 1) ** 3 / n**2
    return total


def test_kernel_distance_is_the_mean_over_disjoint_subsets():
    first, second = normal((23, 3)), normal((31, 3), 1, shift=0.5)
    estimate = distances.kernel_distance(first, second, subsets=4, seed=3)
    rng = np.random.default_rng(3)
    order, other_order = rng.permutation(23), rng.permutation(31)
    values = [
        slow_squared_mmd(first[order[k : k + 5]], second[other_order[k : k + 5]])
        for k in range(0, 20, 5)
    ]
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.standard_error == pytest.approx(stats.sem(values))


def test_kernel_distance_is_unbiased_and_its_standard_error_is_right():
    """In one dimension it is 3 a^2 + 3 b^2 + c^2, of the differences of the first three moments."""
    scores = []
    for seed in range(40):
        first, second = normal((400, 1), 2 * seed), normal((400, 1), 2 * seed + 1)
        estimate = distances.kernel_distance(first, second, subsets=20, seed=0)
        scores.append(estimate.value / estimate.standard_error)
    assert abs(np.mean(scores)) < 0.5
    assert 0.7 < np.std(scores) < 1.5
    shifted = distances.kernel_distance(
        normal((4000, 1)), normal((4000, 1), 1, shift=0.5), subsets=20, seed=0
    )
    # The moments of N(0, 1) are 0, 1, 0; those of N(1/2, 1) are 1/2, 5/4, 13/8.
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    assert abs(shifted.value - expected) < 3 * shifted.standard_error


def test_nearest_equals_a_loop():
    queries, points = normal((3, 3)), normal((700, 3), 1)
    neighbors = distances.nearest(queries, points, count=300)
    for query, found, indices in zip(queries, *neighbors, strict=True):
        expected = np.array([np.sqrt(np.sum((query - point) ** 2)) for point in points])
        np.testing.assert_array_equal(indices, np.argsort(expected)[:300])
        np.testing.assert_allclose(found, expected[indices])


def test_distances_of_close_points_are_exact():
    points = normal((100, 64), shift=1e3)
    neighbors = distances.nearest(points[[7, 42]] + [[0], [2.0**-20]], points, count=1)
    np.testing.assert_array_equal(neighbors.indices, [[7], [42]])
    np.testing.assert_allclose(neighbors.distances, [[0], [8 * 2.0**-20]], rtol=1e-6)


def slow_prdc(real, generated, k):
    def radius(rows, index):
        return np.sort([np.linalg.norm(rows[index] - row) for row in rows])[k]

    def contains(centers, index, point):
        return np.linalg.norm(point - centers[index]) <= radius(centers, index)

    table = np.array([[contains(real, i, g) for i in range(len(real))] for g in generated])
    other = np.array([[contains(generated, i, r) for i in range(len(generated))] for r in real])
    return (
        table.any(axis=1).mean(),
        other.any(axis=1).mean(),
        table.sum(axis=1).mean() / k,
        table.any(axis=0).mean(),
    )


@pytest.mark.parametrize("neighbors", [1, 3])
def test_prdc_equals_loops(neighbors):
    real, generated = normal((25, 2)), normal((18, 2), 1, scale=0.5, shift=1.0)
    metrics = distances.prdc(real, generated, neighbors=neighbors)
    np.testing.assert_allclose(metrics, slow_prdc(real, generated, neighbors))
    assert len({round(value, 6) for value in metrics}) == 4


def test_prdc_of_equal_distant_and_collapsed_distributions():
    real = normal((1500, 2))
    with sklearn.config_context(working_memory=1):  # MiB: several chunks
        same = distances.prdc(real, normal((1500, 2), 1), neighbors=5)
    assert min(same.precision, same.recall) > 0.95
    assert same.density == pytest.approx(1, abs=0.1)
    # Naeem et al. 2020, section 3: of equally many, the nearest five are all real with chance 2^-5.
    assert same.coverage == pytest.approx(1 - 2.0**-5, abs=0.02)
    assert distances.prdc(real, real + 100, neighbors=5) == (0, 0, 0, 0)
    collapsed = distances.prdc(real, normal((1500, 2), 1, scale=0.01), neighbors=5)
    assert collapsed.precision == 1
    assert max(collapsed.recall, collapsed.coverage) < 0.05


ROWS = normal((20, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: distances.fit_gaussian(ROWS[:1]),
        lambda: distances.fit_gaussian(np.where(ROWS > 0, np.nan, ROWS)),
        lambda: distances.frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2))),
        lambda: distances.kernel_distance(ROWS, ROWS[:9], subsets=5, seed=0),
        lambda: distances.kernel_distance(ROWS, ROWS[:, :1], subsets=5, seed=0),
        lambda: distances.nearest(ROWS[:3], ROWS[:3], count=4),
        lambda: distances.nearest(ROWS, ROWS[:, :1], count=1),
        lambda: distances.prdc(ROWS, ROWS[:5], neighbors=5),
    ],
)
def test_invalid_sets_are_refused(call):
    with pytest.raises(ValueError, match=r"."):
        call()
