"""Metrics of generated images, each with the value of real images for comparison.

Most distances depend on the number of images, so all sets that are compared have one size: the test
images are split at random into halves A and B, and the samples likewise. The value of real images is
the distance between A and B. The value of samples is the mean over (A, samples 1) and (B, samples 2).
Reconstructions of A are compared with B and vice versa, because a reconstruction is closer to its own
original than to other real images.
"""

from typing import NamedTuple

import numpy as np

from functa.evaluation import distances
from functa.evaluation.features import FeatureExtractor
from functa.runtime import rng

PRDC_NEIGHBORS = 5  # Naeem et al. 2020
KERNEL_SUBSETS = 10
MIN_IMAGES = 4 * KERNEL_SUBSETS  # two images of each half in every subset

Halves = tuple[np.ndarray, np.ndarray]


def image_set_metrics(
    extractor: FeatureExtractor,
    *,
    test: np.ndarray,
    reconstructions: np.ndarray,
    samples: np.ndarray,
    gaussian: np.ndarray,
    seed: int,
) -> dict[str, float | int | str]:
    """Compares generated images with real ones; functa/report/metric_registry.py explains the keys.

    Args:
      test: real images [n, h, w, c] float32 in [0, 1]; at least 40.
      reconstructions: [n, h, w, c], the decoded latents of `test`.
      samples: [m, h, w, c], generated images with the class frequencies of `test`.
      gaussian: [l, h, w, c], decoded samples of a Gaussian fitted to the latents.
      seed: seed of the division into halves and subsets.
    Returns:
      frechet_distance of the samples, frechet_floor, frechet_reconstruction, frechet_gaussian;
      frechet_features (name of the extractor) and frechet_images (size of each set compared: half of
      the smallest of n, m, l). kernel_distance and kernel_distance_floor with their _standard_error,
      of the whole sets, because they have no bias. precision, recall, density, coverage of samples,
      and with the suffix _real of real images.
    Raises:
      ValueError: features are not finite, or there are too few images.
    Source: Heusel et al. 2017 (Fréchet); Binkowski et al. 2018 (kernel); Kynkaanniemi et al. 2019 and
      Naeem et al. 2020 (precision to coverage).
    """
    image_sets = {"test": test, "reconstructions": reconstructions}
    image_sets |= {"samples": samples, "gaussian": gaussian}
    size = min(map(len, image_sets.values())) // 2
    features = {name: extractor.extract(images) for name, images in image_sets.items()}
    halves = {name: _split_in_halves(rows, size, seed) for name, rows in features.items()}
    metrics: dict[str, float | int | str] = {
        **_frechet_distances(halves),
        "frechet_features": extractor.name,
        "frechet_images": size,
    }
    for key, pair in {
        "kernel_distance": (features["test"], features["samples"]),
        "kernel_distance_floor": halves["test"],
    }.items():
        estimate = distances.kernel_distance(*pair, subsets=KERNEL_SUBSETS, seed=seed)
        metrics |= {key: estimate.value, f"{key}_standard_error": estimate.standard_error}
    real, generated = halves["test"], halves["samples"]
    metrics |= _mean_prdc(real, generated)
    return metrics | {f"{key}_real": value for key, value in _mean_prdc(real, real[::-1]).items()}


def _split_in_halves(rows: np.ndarray, size: int, seed: int) -> Halves:
    """Returns two disjoint random sets of `size` rows; sets of one length are split alike.

    The split is random because rows may be sorted by label.
    """
    order = np.random.default_rng(rng.stream_seed(seed, "order")).permutation(len(rows))
    return rows[order[:size]], rows[order[size : 2 * size]]


def _frechet_distances(halves: dict[str, Halves]) -> dict[str, float]:
    gaussians = {name: list(map(distances.fit_gaussian, pair)) for name, pair in halves.items()}
    real = gaussians["test"]

    def mean_distance(name: str, references: list[distances.Gaussian]) -> float:
        pairs = zip(gaussians[name], references, strict=True)
        return float(np.mean([distances.frechet_distance(*pair) for pair in pairs]))

    return {
        "frechet_distance": mean_distance("samples", real),
        "frechet_floor": distances.frechet_distance(*real),
        "frechet_reconstruction": mean_distance("reconstructions", real[::-1]),
        "frechet_gaussian": mean_distance("gaussian", real),
    }


def _mean_prdc(real: Halves, generated: Halves) -> dict[str, float]:
    pairs = zip(real, generated, strict=True)
    values = [distances.prdc(*pair, neighbors=PRDC_NEIGHBORS) for pair in pairs]
    return dict(zip(distances.Prdc._fields, np.mean(values, axis=0).tolist(), strict=True))


class Memorization(NamedTuple):
    """How close samples are to the training set.

    Attributes:
      ratio: median distance of samples to the nearest training example, divided by that of test
        examples; 0 for copies of training examples, about 1 for samples as new as test examples.
      nearest: [l], index of the training example nearest to each sample.
    """

    ratio: float
    nearest: np.ndarray


def memorization(*, train: np.ndarray, test: np.ndarray, samples: np.ndarray) -> Memorization:
    """Compares the distances of samples and of test examples to their nearest training examples.

    A ratio of 1 does not imply quality: noise is far from all examples.

    Args:
      train: [n, ...], images or latents; test: [m, ...]; samples: [l, ...]. Distances are Euclidean.
    Raises:
      ValueError: shapes differ, values are not finite, or test examples are in the training set.
    """
    of_test, of_samples = (
        distances.nearest(rows.reshape(len(rows), -1), train.reshape(len(train), -1), count=1)
        for rows in (test, samples)
    )
    test_distance = float(np.median(of_test.distances))
    if test_distance == 0:
        raise ValueError("at least half of the test examples are in the training set: remove them")
    ratio = float(np.median(of_samples.distances)) / test_distance
    return Memorization(ratio, of_samples.indices[:, 0])
