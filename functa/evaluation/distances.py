"""How far apart two sets of vectors are: distances of distributions, and nearest neighbours.

All in float64 NumPy. Vectors are rows: latents flattened, or features of images. Neighbours are as far apart as
the vectors say, the Fréchet distance is in their unit squared, the kernel distance is a polynomial of them and
wants features of size one. All but the kernel distance are biased by how many vectors there are: compare numbers
of sets of the same sizes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BLOCK = 2**22  # distances held at once: 32 MiB


class Gaussian(NamedTuple):
    """mean [k]; root [r, k] with covariance root^T root: r below k for a covariance of that rank."""

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(samples: np.ndarray) -> Gaussian:
    """The mean and the unbiased covariance of samples [n, k].

    By QR of the centred samples: the covariance, whose condition number is the square of theirs, is never formed.

    Raises:
      ValueError: fewer than two samples, or numbers that are not finite.
    """
    samples = _checked("samples", samples, at_least=2)
    mean = samples.mean(axis=0)
    return Gaussian(mean, np.linalg.qr(samples - mean, mode="r") / np.sqrt(len(samples) - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), exact for covariances of any rank, >= 0.

    With C = R^T R the trace of the root is the sum of the singular values of R1 R2^T: no root of a matrix that
    rounding has made indefinite.

    Raises:
      ValueError: Gaussians of different dimension.
    Source: Dowson and Landau 1982; Heusel et al. 2017, equation 6.
    """
    _same_dimension(first.mean[None], second.mean[None])
    shift = np.sum(np.square(first.mean - second.mean))
    traces = np.sum(np.square(first.root)) + np.sum(np.square(second.root))
    overlap = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    # Rounding may leave a distance of zero below zero.
    return float(shift + max(traces - 2 * overlap, 0.0))


class Estimate(NamedTuple):
    """value, and the standard error of it."""

    value: float
    standard_error: float


def kernel_distance(
    first: np.ndarray, second: np.ndarray, *, subset_size: int, seed: int
) -> Estimate:
    """Squared maximum mean discrepancy under the kernel (x . y / k + 1)^3: unbiased, so it may be negative.

    The mean over disjoint random subsets of both sets, so that its standard error is that of independent numbers.

    Args:
      first: [n, k]; second: [m, k].
      subset_size: samples of each set in a subset, at least 2; two subsets must fit into the smaller set.
      seed: of the division into subsets.
    Raises:
      ValueError: too few samples, different dimensions, or numbers that are not finite.
    Source: Binkowski et al. 2018, section 4; deviation: their subsets overlap.
    """
    if subset_size < 2:
        raise ValueError(f"subset_size={subset_size} must be at least 2")
    first = _checked("first", first, at_least=2 * subset_size)
    second = _checked("second", second, at_least=2 * subset_size)
    _same_dimension(first, second)
    rng = np.random.default_rng(seed)
    subsets = min(len(first), len(second)) // subset_size
    chosen = [
        rng.permutation(len(rows))[: subsets * subset_size].reshape(subsets, subset_size)
        for rows in (first, second)
    ]
    values = [
        _discrepancy(first[ours], second[theirs]) for ours, theirs in zip(*chosen, strict=True)
    ]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(subsets)))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate from equally many samples; Gretton et al. 2012, equation 3."""
    n, k = x.shape

    def kernel(a, b):
        return (a @ b.T / k + 1) ** 3

    within = sum(matrix.sum() - np.trace(matrix) for matrix in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * kernel(x, y).mean()


class Neighbours(NamedTuple):
    """distances [n, count], rising, and indices [n, count] of the points that are nearest."""

    distances: np.ndarray
    indices: np.ndarray


def nearest(queries: np.ndarray, points: np.ndarray, *, count: int) -> Neighbours:
    """The `count` points [m, k] nearest to each query [n, k], in Euclidean distance.

    In blocks of queries, so that memory is bounded; a point that equals the query has distance zero exactly.

    Raises:
      ValueError: fewer points than `count`, different dimensions, or numbers that are not finite.
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    queries = _checked("queries", queries, at_least=1)
    points = _checked("points", points, at_least=count)
    _same_dimension(queries, points)
    distances = np.empty((len(queries), count))
    indices = np.empty((len(queries), count), np.int64)
    for rows, squares in _blocks(queries, points):
        some = np.argpartition(squares, count - 1, axis=1)[:, :count]
        # Of the few chosen, without the cancellation of |a|^2 - 2 a . b + |b|^2.
        gaps = np.stack([queries[rows] - points[column] for column in some.T], axis=1)
        exact = np.sqrt(np.sum(np.square(gaps), axis=2))
        order = np.argsort(exact, axis=1, kind="stable")
        distances[rows] = np.take_along_axis(exact, order, axis=1)
        indices[rows] = np.take_along_axis(some, order, axis=1)
    return Neighbours(distances, indices)


class Overlap(NamedTuple):
    """How two sets cover each other, by balls around samples that reach to their k-th neighbour.

    Attributes:
      precision: fraction of generated samples inside some ball of the real ones, in [0, 1].
      recall: fraction of real samples inside some ball of the generated ones, in [0, 1].
      density: balls of real samples around a generated one, over k; about 1 for equal distributions, unbounded.
      coverage: fraction of the real samples' balls that hold a generated sample, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(real: np.ndarray, generated: np.ndarray, *, neighbours: int) -> Overlap:
    """Precision, recall, density and coverage of generated samples [m, k] over real ones [n, k].

    Args:
      neighbours: which neighbour a ball reaches to; 3 in Kynkaanniemi et al., 5 in Naeem et al.
    Raises:
      ValueError: not more samples than neighbours, different dimensions, or numbers that are not finite.
    Source: Kynkaanniemi et al. 2019, equation 2; Naeem et al. 2020, section 3.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours} must be at least 1")
    real = _checked("real", real, at_least=neighbours + 1)
    generated = _checked("generated", generated, at_least=neighbours + 1)
    _same_dimension(real, generated)
    balls_around, covered = _in_balls(generated, real, neighbours)
    balls_around_real, _ = _in_balls(real, generated, neighbours)
    return Overlap(
        precision=float(np.mean(balls_around > 0)),
        recall=float(np.mean(balls_around_real > 0)),
        density=float(np.mean(balls_around) / neighbours),
        coverage=float(np.mean(covered)),
    )


def _in_balls(
    queries: np.ndarray, centres: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """(how many balls of `centres` hold each query [n], whether each ball holds some query [m])."""
    # A centre is its own nearest neighbour, which does not count.
    radii = nearest(centres, centres, count=neighbours + 1).distances[:, -1]
    counts = np.zeros(len(queries), np.int64)
    covered = np.zeros(len(centres), bool)
    for rows, squares in _blocks(queries, centres):
        inside = squares <= np.square(radii)[None]
        counts[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
    return counts, covered


def _blocks(queries: np.ndarray, points: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, squared distances [rows, m]) of all queries, a bounded number of distances at a time."""
    rows = max(1, _BLOCK // len(points))
    lengths = np.sum(np.square(points), axis=1)
    for first in range(0, len(queries), rows):
        block = slice(first, first + rows)
        some = queries[block]
        squares = np.sum(np.square(some), axis=1)[:, None] + lengths[None] - 2 * some @ points.T
        yield block, np.maximum(squares, 0)


def _checked(name: str, rows: np.ndarray, *, at_least: int) -> np.ndarray:
    """`rows` as float64, or a ValueError that names what is wrong with them."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{name} must be vectors [n, k], not {list(rows.shape)}")
    if len(rows) < at_least:
        raise ValueError(f"{name} are {len(rows)} vectors; this needs at least {at_least}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of the {len(rows)} vectors in {name} hold numbers that are not finite, "
            f"first number {bad[0]}"
        )
    return rows


def _same_dimension(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the vectors of both sets must be alike, not of {first.shape[1]} and of "
            f"{second.shape[1]} numbers"
        )
