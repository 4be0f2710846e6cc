"""Distances between two sets of vectors, and nearest neighbors.

A set is an array [n, k]: n vectors (flattened latents, or features of images) of dimension k. All
distances but the kernel distance have a bias that depends on n: compare values of sets of the same
sizes only.
"""

from typing import NamedTuple

import numpy as np

# Functions import scikit-learn when they need it: that takes a second.


class Gaussian(NamedTuple):
    """A normal distribution: mean [k], and root [r, k] with covariance root^T root."""

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(samples: np.ndarray) -> Gaussian:
    """Fits the mean and the unbiased covariance of samples [n, k].

    The QR decomposition of the centered samples gives the root. The covariance itself, whose
    condition number is the square of theirs, is not formed.

    Raises:
      ValueError: there are fewer than two samples, or values are not finite.
    """
    samples = _vectors("samples", samples, min_count=2)
    mean = samples.mean(axis=0)
    return Gaussian(mean, np.linalg.qr(samples - mean, mode="r") / np.sqrt(len(samples) - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0.

    With C = R^T R, the trace of the square root is the sum of the singular values of R1 R2^T. This is
    exact for covariances of any rank; a matrix square root is not.

    Raises:
      ValueError: the dimensions differ.
    Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6.
    """
    mean_term = np.sum(np.square(first.mean - second.mean))
    traces = np.sum(np.square(first.root)) + np.sum(np.square(second.root))
    root_trace = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    # Rounding errors can make the difference of traces negative.
    return float(mean_term + max(traces - 2 * root_trace, 0.0))


class Estimate(NamedTuple):
    """An estimated value and its standard error."""

    value: float
    standard_error: float


def kernel_distance(first: np.ndarray, second: np.ndarray, *, subsets: int, seed: int) -> Estimate:
    """Squared maximum mean discrepancy with the kernel (x . y / k + 1)^3; unbiased, may be negative.

    The estimate is the mean over `subsets` random pairs of subsets. The subsets are disjoint, so that
    their values are independent and give the standard error.

    Args:
      first: [n, k]; second: [m, k].
      subsets: number of subsets, at least 2; each has min(n, m) // subsets vectors of each set.
      seed: seed of the division into subsets.
    Raises:
      ValueError: a subset has fewer than two vectors, the dimensions differ, or values are not finite.
    Source: Binkowski et al. 2018, section 4; deviation: their subsets overlap.
    """
    first = _vectors("first", first, min_count=2 * subsets)
    second = _vectors("second", second, min_count=2 * subsets)
    size = min(len(first), len(second)) // subsets
    rng = np.random.default_rng(seed)
    first, second = (
        rows[rng.permutation(len(rows))[: subsets * size]].reshape(subsets, size, -1)
        for rows in (first, second)
    )
    values = [_squared_mmd(x, y) for x, y in zip(first, second, strict=True)]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(subsets)))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate from sets of equal size; Gretton et al. 2012, equation 3."""
    n, k = x.shape

    def kernel(a, b):
        return (a @ b.T / k + 1) ** 3

    within = sum(matrix.sum() - np.trace(matrix) for matrix in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


class Neighbors(NamedTuple):
    """Nearest neighbors: distances [n, count], ascending, and indices [n, count] into the points."""

    distances: np.ndarray
    indices: np.ndarray


def nearest(queries: np.ndarray, points: np.ndarray, *, count: int) -> Neighbors:
    """Finds the `count` points [m, k] nearest to each query [n, k], in Euclidean distance.

    Raises:
      ValueError: there are fewer points than `count`, the dimensions differ, or values are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    queries = _vectors("queries", queries, min_count=1)
    points = _vectors("points", points, min_count=count)
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
    indices = search.kneighbors(queries, return_distance=False)
    # The search expands |a - b|^2, which cancels where points are close. These distances are exact:
    # a point that equals the query has distance 0.
    exact = [np.linalg.norm(queries - points[column], axis=1) for column in indices.T]
    distances = np.stack(exact, axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    return Neighbors(*(np.take_along_axis(part, order, axis=1) for part in (distances, indices)))


class Prdc(NamedTuple):
    """Precision, recall, density and coverage, from balls that reach to a sample's k-th neighbor.

    Attributes:
      precision: fraction of generated samples inside any ball of a real sample.
      recall: fraction of real samples inside any ball of a generated sample.
      density: mean number of real balls around a generated sample, divided by k; about 1 for equal
        distributions, unbounded.
      coverage: fraction of the real balls that contain a generated sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, generated: np.ndarray, *, neighbors: int) -> Prdc:
    """Precision, recall, density and coverage of generated samples [m, k] against real ones [n, k].

    Args:
      neighbors: the neighbor that a ball reaches to; 3 in Kynkaanniemi et al., 5 in Naeem et al.
    Raises:
      ValueError: a set has no more samples than `neighbors`, the dimensions differ, or values are not
        finite.
    Source: Kynkaanniemi et al. 2019, equation 2; Naeem et al. 2020, section 3.
    """
    real = _vectors("real", real, min_count=neighbors + 1)
    generated = _vectors("generated", generated, min_count=neighbors + 1)
    real_balls, covered = _count_balls(generated, real, neighbors)
    generated_balls, _ = _count_balls(real, generated, neighbors)
    return Prdc(
        precision=float(np.mean(real_balls > 0)),
        recall=float(np.mean(generated_balls > 0)),
        density=float(np.mean(real_balls) / neighbors),
        coverage=float(np.mean(covered)),
    )


def _count_balls(
    queries: np.ndarray, centers: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of balls around each query [n], and whether each ball has a query [m]."""
    from sklearn.metrics import pairwise_distances_chunked

    # A center is its own nearest neighbor.
    radii = nearest(centers, centers, count=neighbors + 1).distances[:, -1]
    counts, covered = [], np.zeros(len(centers), bool)
    for distances in pairwise_distances_chunked(queries, centers):
        inside = distances <= radii
        counts.append(inside.sum(axis=1))
        covered |= inside.any(axis=0)
    return np.concatenate(counts), covered


def _vectors(name: str, values: np.ndarray, *, min_count: int) -> np.ndarray:
    """Checks that `values` are at least `min_count` finite vectors; returns them as float64."""
    from sklearn.utils import check_array

    return check_array(values, dtype=np.float64, ensure_min_samples=min_count, input_name=name)
