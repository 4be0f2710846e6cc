"""How generated pictures are judged: beside real ones, beside what the latents can hold, beside copies.

Every number that depends on how many pictures there are is taken of equally many: the test images
are divided by seed into two halves A and B, the samples likewise, all of one size. What real
pictures would get is the distance of A from B, what samples get is the mean over (A, samples 1) and
(B, samples 2), and reconstructions of A are held against B, and the other way: against their own
originals they would be near for another reason than that they look real.
"""

from typing import NamedTuple

import numpy as np

from functa.evaluation import distances
from functa.evaluation.distances import Neighbours
from functa.evaluation.features import Extractor
from functa.runtime import rng

NEIGHBOURS = 5  # what a ball reaches to: Naeem et al. 2020
_SUBSETS = 10  # of the kernel distance: its standard error is then known to a quarter of itself
FEWEST = 4 * _SUBSETS  # images: two of each half in every subset


def judge(
    extractor: Extractor,
    *,
    test: np.ndarray,
    reconstructions: np.ndarray,
    samples: np.ndarray,
    gaussian: np.ndarray,
    seed: int,
) -> dict[str, float | int | str]:
    """Numbers for samples, each with the same of real images beside it (functa/results.py has the meanings).

    Args:
      extractor: what the images are described by.
      test: [n, h, w, c] float32 in [0, 1], real images; at least 40.
      reconstructions: [n, h, w, c], the same images, encoded and decoded.
      samples: [m, h, w, c], of the generator; as classes go, like `test`.
      gaussian: [l, h, w, c], decoded from a Gaussian with the latents' mean and covariance.
      seed: of the division into halves and subsets.
    Returns:
      frechet_distance, frechet_floor, frechet_reconstruction, frechet_gaussian; frechet_features
      (the extractor's name) and frechet_images (in each of two sets that are compared: half of the
      smallest of n, m, l); kernel_distance, kernel_distance_floor and the _standard_error of each,
      of the whole sets, as it has no bias; precision, recall, density, coverage, and precision_real,
      ..., of B in place of samples. With an extractor named "inception" also fid, of all samples and
      all test images.
    Raises:
      ValueError: fewer than 40 images, shapes that differ, or numbers that are no picture.
    Source: Heusel et al. 2017 (Fréchet); Binkowski et al. 2018 (kernel); Kynkaanniemi et al. 2019
      and Naeem et al. 2020 (precision to coverage).
    """
    sets = {
        "test": test,
        "reconstructions": reconstructions,
        "samples": samples,
        "gaussian": gaussian,
    }
    for name, images in sets.items():
        _check(name, images, like=test)
    if len(reconstructions) != len(test):
        raise ValueError(
            f"{len(reconstructions)} reconstructions of {len(test)} test images: one of each is needed"
        )
    size = min(map(len, sets.values())) // 2
    described = {name: extractor.extract(images) for name, images in sets.items()}
    halves = {name: _halves(rows, size, seed) for name, rows in described.items()}
    return {
        **_frechet(halves),
        "frechet_features": extractor.name,
        "frechet_images": size,
        **_kernel(described["test"], described["samples"], halves["test"], seed),
        **_overlap(halves["test"], halves["samples"]),
        **_fid(extractor.name, described["test"], described["samples"]),
    }


class Memorisation(NamedTuple):
    """Where samples are in the training set.

    Attributes:
      ratio: median distance of samples to their nearest training example, over that of test
        examples; about 1 for samples as new as test examples are, 0 for copies.
      samples, test: Neighbours, distances [m, 1] and indices [m, 1] into the training set.
    """

    ratio: float
    samples: Neighbours
    test: Neighbours


def memorisation(*, train: np.ndarray, test: np.ndarray, samples: np.ndarray) -> Memorisation:
    """Nearest training examples of samples and of test examples: is the training set remembered?

    A ratio of 1 is no proof of quality: noise is far from everything.

    Args:
      train: [n, ...], images or latents; test: [m, ...]; samples: [l, ...]. Distances are Euclidean
        in all their numbers. A thousand samples are enough for a median; the time is n (m + l).
    Raises:
      ValueError: shapes that differ, numbers that are not finite, or test examples that are in the
        training set themselves.
    """
    for name, some in (("test", test), ("samples", samples)):
        if some.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"{name} are {list(some.shape[1:])}, the training set {list(train.shape[1:])}"
            )
        if len(some) == 0:
            raise ValueError(f"{name}: none, and no median")
    queries = np.concatenate([some.reshape(len(some), -1) for some in (test, samples)])
    found = distances.nearest(queries, train.reshape(len(train), -1), count=1)
    of_test = Neighbours(*(part[: len(test)] for part in found))
    of_samples = Neighbours(*(part[len(test) :] for part in found))
    usual = float(np.median(of_test.distances))
    if usual == 0:
        raise ValueError("half of the test examples are in the training set: nothing to compare to")
    return Memorisation(float(np.median(of_samples.distances)) / usual, of_samples, of_test)


Halves = tuple[np.ndarray, np.ndarray]


def _halves(rows: np.ndarray, size: int, seed: int) -> Halves:
    """Two disjoint sets of `size` rows; equally long sets are divided alike.

    At random, because sets may be in the order of their labels.
    """
    order = np.random.default_rng(rng.stream_seed(seed, "order")).permutation(len(rows))
    return rows[order[:size]], rows[order[size : 2 * size]]


def _frechet(halves: dict[str, Halves]) -> dict[str, float]:
    fitted = {name: list(map(distances.fit_gaussian, pair)) for name, pair in halves.items()}
    real = fitted["test"]

    def mean(name: str, references: list[distances.Gaussian]) -> float:
        pairs = zip(fitted[name], references, strict=True)
        return float(np.mean([distances.frechet_distance(*pair) for pair in pairs]))

    return {
        "frechet_distance": mean("samples", real),
        "frechet_floor": distances.frechet_distance(*real),
        "frechet_reconstruction": mean("reconstructions", real[::-1]),
        "frechet_gaussian": mean("gaussian", real),
    }


def kernel(first: np.ndarray, second: np.ndarray, seed: int) -> distances.Estimate:
    """Kernel distance of two sets of features [n, k] and [m, k], by ten subsets."""
    size = min(len(first), len(second)) // _SUBSETS
    return distances.kernel_distance(first, second, subset_size=size, seed=seed)


def _kernel(test: np.ndarray, samples: np.ndarray, real: Halves, seed: int) -> dict[str, float]:
    results = {}
    for key, first, second in (
        ("kernel_distance", test, samples),
        ("kernel_distance_floor", *real),
    ):
        estimate = kernel(first, second, seed)
        results[key] = estimate.value
        results[f"{key}_standard_error"] = estimate.standard_error
    return results


def _overlap(real: Halves, samples: Halves) -> dict[str, float]:
    def mean(references: Halves, others: Halves) -> np.ndarray:
        pairs = zip(references, others, strict=True)
        return np.mean([distances.overlap(*pair, neighbours=NEIGHBOURS) for pair in pairs], axis=0)

    names = distances.Overlap._fields
    reached = dict(zip(names, mean(real, samples), strict=True))
    usual = dict(zip(names, mean(real, real[::-1]), strict=True))
    return {
        **{name: float(value) for name, value in reached.items()},
        **{f"{name}_real": float(value) for name, value in usual.items()},
    }


def _fid(name: str, test: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """The number that others call so; of other features it is none."""
    if name != "inception":
        return {}
    pair = map(distances.fit_gaussian, (test, samples))
    return {"fid": distances.frechet_distance(*pair)}


def _check(name: str, images: np.ndarray, *, like: np.ndarray, fewest: int = FEWEST) -> None:
    """Raises ValueError unless `images` are pictures of the shape of `like`."""
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{name} must be images [n, h, w, c] float32 in [0, 1], not {list(images.shape)} "
            f"{images.dtype}"
        )
    if images.shape[1:] != like.shape[1:]:
        raise ValueError(f"{name} are {list(images.shape[1:])}, test images {list(like.shape[1:])}")
    if len(images) < fewest:
        raise ValueError(f"{name}: {len(images)} images; at least {fewest} are needed")
    bad = np.flatnonzero(~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of the {len(images)} {name} hold numbers outside [0, 1] or not finite, "
            f"first number {bad[0]}; clip what is decoded"
        )
