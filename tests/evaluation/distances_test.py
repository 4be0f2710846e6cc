"""Distances against closed forms, against SciPy and against loops over pairs."""

import numpy as np
import pytest
from scipy import linalg, stats

from functa.evaluation import distances


def samples(shape, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=shape) * scale + shift


def gaussian(mean, covariance):
    return distances.Gaussian(np.asarray(mean), np.linalg.cholesky(covariance).T)


def test_a_fitted_gaussian_has_the_moments_of_its_samples():
    for rows in (samples((50, 4)), samples((3, 7))):  # with fewer samples than dimensions too
        fitted = distances.fit_gaussian(rows)
        np.testing.assert_allclose(fitted.mean, rows.mean(0))
        np.testing.assert_allclose(fitted.root.T @ fitted.root, np.cov(rows.T), atol=1e-12)


def test_frechet_of_gaussians_on_the_line():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    got = distances.frechet_distance(gaussian([1.0], [[4.0]]), gaussian([3.0], [[0.25]]))
    assert got == pytest.approx(2**2 + 1.5**2)


def test_frechet_of_commuting_covariances():
    turn = np.linalg.qr(samples((5, 5)))[0]
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 1, 2, 9, 0.1])
    got = distances.frechet_distance(
        gaussian(np.zeros(5), turn @ np.diag(first) @ turn.T),
        gaussian(np.ones(5), turn @ np.diag(second) @ turn.T),
    )
    assert got == pytest.approx(5 + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2))


def test_frechet_is_what_the_square_root_of_scipy_gives():
    first, second = samples((200, 6), 1), samples((300, 6), 2, scale=1.5, shift=0.3)
    first[:, 0] += first[:, 1]
    c1, c2 = np.cov(first.T), np.cov(second.T)
    root = np.real(linalg.sqrtm(c1 @ c2))
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)
    got = distances.frechet_distance(*map(distances.fit_gaussian, (first, second)))
    assert got == pytest.approx(expected, rel=1e-9)
    swapped = distances.frechet_distance(*map(distances.fit_gaussian, (second, first)))
    assert got == pytest.approx(swapped, rel=1e-12)


def test_frechet_of_degenerate_gaussians_is_exact():
    """Covariances of rank 2 in 40 dimensions, in planes at right angles: nothing overlaps."""
    axes = np.linalg.qr(samples((40, 4)))[0].T
    rows = samples((30, 2))
    first, second = (distances.fit_gaussian(rows @ axes[part]) for part in ([0, 1], [2, 3]))
    shift = 2 * np.sum(rows.mean(0) ** 2)
    assert distances.frechet_distance(first, second) == pytest.approx(
        shift + 2 * np.trace(np.cov(rows.T)), rel=1e-12
    )
    assert 0 <= distances.frechet_distance(first, first) < 1e-12
    nearly = distances.fit_gaussian(rows @ axes[[0, 1]] * (1 + 1e-6))
    expected = 1e-12 * (np.sum(rows.mean(0) ** 2) + np.trace(np.cov(rows.T)))
    assert distances.frechet_distance(first, nearly) == pytest.approx(expected, rel=0.01)


def slow_discrepancy(x, y):
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
    first, second = samples((23, 3)), samples((31, 3), 1, shift=0.5)
    got = distances.kernel_distance(first, second, subset_size=5, seed=3)
    rng = np.random.default_rng(3)
    ours, theirs = rng.permutation(23), rng.permutation(31)
    values = [
        slow_discrepancy(first[ours[k : k + 5]], second[theirs[k : k + 5]]) for k in range(0, 20, 5)
    ]
    assert got.value == pytest.approx(np.mean(values))
    assert got.standard_error == pytest.approx(stats.sem(values))
    assert got == distances.kernel_distance(first, second, subset_size=5, seed=3)
    assert got.value != distances.kernel_distance(first, second, subset_size=5, seed=4).value
    assert got.value != distances.kernel_distance(first, second, subset_size=6, seed=3).value


def test_kernel_distance_is_unbiased_and_its_error_honest():
    """In one dimension it is 3 a^2 + 3 b^2 + c^2, of the differences of the first three moments."""
    scores = []
    for seed in range(40):
        first, second = samples((400, 1), 2 * seed), samples((400, 1), 2 * seed + 1)
        got = distances.kernel_distance(first, second, subset_size=20, seed=0)
        scores.append(got.value / got.standard_error)
    assert abs(np.mean(scores)) < 0.5
    assert 0.7 < np.std(scores) < 1.5
    shifted = distances.kernel_distance(
        samples((4000, 1)), samples((4000, 1), 1, shift=0.5), subset_size=200, seed=0
    )
    # moments of N(0, 1): 0, 1, 0; of N(1/2, 1): 1/2, 5/4, 13/8
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    assert abs(shifted.value - expected) < 3 * shifted.standard_error


def slow_nearest(queries, points, count):
    found, order = [], []
    for query in queries:
        apart = np.array([np.sqrt(np.sum((query - point) ** 2)) for point in points])
        order.append(np.argsort(apart, kind="stable")[:count])
        found.append(apart[order[-1]])
    return np.array(found), np.array(order)


@pytest.mark.parametrize("block", [1, 1400, 10**6])
def test_nearest_neighbours_are_those_of_a_loop(monkeypatch, block):
    monkeypatch.setattr(distances, "_BLOCK", block)
    queries, points = samples((3, 3)), samples((700, 3), 1)
    got = distances.nearest(queries, points, count=300)
    expected, order = slow_nearest(queries, points, 300)
    np.testing.assert_allclose(got.distances, expected)
    np.testing.assert_array_equal(got.indices, order)


def test_a_copy_is_found_at_distance_zero_and_a_near_one_at_its_own():
    points = samples((100, 64), shift=1e3)
    got = distances.nearest(points[[7, 42]] + [[0], [2.0**-20]], points, count=1)
    np.testing.assert_array_equal(got.indices, [[7], [42]])
    np.testing.assert_allclose(got.distances, [[0], [8 * 2.0**-20]], rtol=1e-6)


def slow_overlap(real, generated, k):
    def radius(rows, index):
        return np.sort([np.linalg.norm(rows[index] - row) for row in rows])[k]

    def holds(centres, index, point):
        return np.linalg.norm(point - centres[index]) <= radius(centres, index)

    table = np.array([[holds(real, i, g) for i in range(len(real))] for g in generated])
    other = np.array([[holds(generated, i, r) for i in range(len(generated))] for r in real])
    return (
        table.any(axis=1).mean(),
        other.any(axis=1).mean(),
        table.sum(axis=1).mean() / k,
        table.any(axis=0).mean(),
    )


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("block", [1, 10**6])
def test_overlap_is_that_of_loops(monkeypatch, block, neighbours):
    monkeypatch.setattr(distances, "_BLOCK", block)
    real, generated = samples((25, 2)), samples((18, 2), 1, scale=0.5, shift=1.0)
    got = distances.overlap(real, generated, neighbours=neighbours)
    np.testing.assert_allclose(got, slow_overlap(real, generated, neighbours))
    assert len({round(value, 6) for value in got}) == 4


def test_overlap_of_equal_distant_and_collapsed_sets():
    real = samples((1500, 2))
    same = distances.overlap(real, samples((1500, 2), 1), neighbours=5)
    assert min(same.precision, same.recall) > 0.95
    assert same.density == pytest.approx(1, abs=0.1)
    # Naeem et al. 2020, section 3: of equally many, the nearest five are all real with chance 2^-5
    assert same.coverage == pytest.approx(1 - 2.0**-5, abs=0.02)
    assert distances.overlap(real, real + 100, neighbours=5) == (0, 0, 0, 0)
    collapsed = distances.overlap(real, samples((1500, 2), 1, scale=0.01), neighbours=5)
    assert collapsed.precision == 1
    assert max(collapsed.recall, collapsed.coverage) < 0.05


NAN = np.where(np.arange(20)[:, None] == 7, np.nan, samples((20, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distances.fit_gaussian(samples((1, 2))), "samples are 1 vectors.* at least 2"),
        (lambda: distances.fit_gaussian(samples(5)), r"vectors \[n, k\], not \[5\]"),
        (lambda: distances.fit_gaussian(NAN), "1 of the 20 vectors .* first number 7"),
        (
            lambda: distances.frechet_distance(
                gaussian([0.0], [[1.0]]), gaussian([0, 0], np.eye(2))
            ),
            "not of 1 and of 2 numbers",
        ),
        (
            lambda: distances.kernel_distance(NAN[8:], NAN[8:17], subset_size=5, seed=0),
            "second are 9 vectors; this needs at least 10",
        ),
        (
            lambda: distances.kernel_distance(NAN, NAN, subset_size=1, seed=0),
            "subset_size=1 must be at least 2",
        ),
        (
            lambda: distances.kernel_distance(NAN, NAN, subset_size=5, seed=0),
            "vectors in first hold numbers that are not finite",
        ),
        (lambda: distances.nearest(NAN[:3], NAN[:3], count=4), "points are 3 vectors.* at least 4"),
        (lambda: distances.nearest(NAN[:3], NAN[:3], count=0), "count=0 must be at least 1"),
        (lambda: distances.nearest(NAN[:3], NAN[:3, :1], count=1), "of 2 and of 1 numbers"),
        (lambda: distances.overlap(NAN, NAN, neighbours=0), "neighbours=0 must be at least 1"),
        (
            lambda: distances.overlap(NAN[:6], NAN[:5], neighbours=5),
            "generated are 5 vectors; this needs at least 6",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
