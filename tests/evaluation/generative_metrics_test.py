"""Metrics of generated images: closed forms, floors and invalid images."""

import numpy as np
import pytest

from functa.evaluation import generative_metrics
from functa.evaluation.features import FeatureExtractor

PIXELS = FeatureExtractor("pixels", lambda images: images.reshape(len(images), -1))
SETS = ("test", "reconstructions", "samples", "gaussian")
PRDC = ("precision", "recall", "density", "coverage")


def random_images(count, seed=0, shape=(3, 3, 1)):
    """Random images with correlated pixels."""
    images = np.random.default_rng(seed).normal(0.5, 0.1, (count, *shape))
    images = (images + images.mean(axis=(1, 2), keepdims=True)) / 2
    return np.clip(images, 0, 1).astype(np.float32)


def metrics(seed=0, **changed):
    images = {name: random_images(200, number) for number, name in enumerate(SETS)}
    return generative_metrics.image_set_metrics(PIXELS, **{**images, **changed}, seed=seed)


@pytest.fixture(scope="module")
def usual():
    """Metrics of four sets of one distribution."""
    return metrics()


def test_samples_of_the_same_distribution_are_at_the_floor(usual):
    floor = usual["frechet_floor"]
    for key in ("frechet_distance", "frechet_reconstruction", "frechet_gaussian"):
        assert 0.5 * floor < usual[key] < 2 * floor
    assert metrics(samples=random_images(200, 2) + np.float32(0.1))["frechet_distance"] > 10 * floor
    for key in PRDC:
        assert usual[key] == pytest.approx(usual[f"{key}_real"], abs=0.12)
        assert usual[f"{key}_real"] > 0.5
    for key in ("kernel_distance", "kernel_distance_floor"):
        assert abs(usual[key]) < 4 * usual[f"{key}_standard_error"]
    assert (usual["frechet_features"], usual["frechet_images"]) == ("pixels", 100)


def test_a_shift_adds_its_square():
    """Samples that are the test images plus 0.1 in all 9 pixels."""
    test = random_images(200)
    # Sets of equal length are split alike, so each half is compared with itself, shifted.
    shifted = metrics(test=test, samples=test + np.float32(0.1))
    assert shifted["frechet_distance"] == pytest.approx(9 * 0.1**2, rel=1e-4)


def test_halves_are_disjoint_random_and_alike_for_equal_lengths():
    rows = np.arange(50)[:, None]
    first, second = generative_metrics._split_in_halves(rows, 20, 0)
    assert len(np.unique(np.concatenate([first, second]))) == 40
    assert (np.sort(first[:, 0]) != np.arange(20)).any()
    np.testing.assert_array_equal(
        generative_metrics._split_in_halves(rows + 7, 20, 0)[1], second + 7
    )
    assert (generative_metrics._split_in_halves(rows, 20, 1)[0] != first).any()


def test_reconstructions_are_not_compared_with_their_originals():
    """Perfect reconstructions are as far from real images as real images are."""
    test = random_images(200)
    result = metrics(test=test, reconstructions=test)
    assert result["frechet_reconstruction"] == pytest.approx(result["frechet_floor"])
    assert result["frechet_floor"] > 0


def test_each_metric_depends_on_its_own_set(usual):
    distant = random_images(200, 9) * np.float32(0.5)
    keys = {
        "reconstructions": "frechet_reconstruction",
        "samples": "frechet_distance",
        "gaussian": "frechet_gaussian",
    }
    for name, key in keys.items():
        result = metrics(**{name: distant})
        assert result[key] > 10 * usual[key]
        others = {*keys.values(), "frechet_floor", "kernel_distance_floor"} - {key}
        assert all(result[other] == usual[other] for other in others)
        if name == "samples":
            assert result["kernel_distance"] > 10 * result["kernel_distance_standard_error"]
            assert all(result[key] < 0.3 * result[f"{key}_real"] for key in PRDC)


def test_the_split_depends_on_the_seed_alone(usual):
    assert metrics() == usual
    other = metrics(seed=1)
    constant = ("frechet_features", "frechet_images")
    assert all(other[key] != usual[key] for key in usual if key not in constant)


def test_frechet_sets_are_half_of_the_smallest_set():
    assert metrics(samples=random_images(91, 5))["frechet_images"] == 45


@pytest.mark.parametrize("name", SETS)
def test_images_that_are_not_finite_are_refused(name):
    images = random_images(200)
    images[17, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        metrics(**{name: images})


def test_memorization_separates_copies_from_new_examples():
    train, test, new = random_images(500), random_images(100, 1), random_images(90, 2)
    near_copies = train[[5, 17, 3]] + np.float32(1e-4)
    copies = generative_metrics.memorization(train=train, test=test, samples=near_copies)
    np.testing.assert_array_equal(copies.nearest, [5, 17, 3])
    assert copies.ratio < 0.01

    def nearest_distance(images):
        distances = np.linalg.norm((images[:, None] - train[None]).reshape(-1, 500, 9), axis=-1)
        return np.median(distances.min(axis=1))

    result = generative_metrics.memorization(train=train, test=test, samples=new)
    assert result.ratio == pytest.approx(nearest_distance(new) / nearest_distance(test), rel=1e-5)
    assert result.ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "changed",
    [
        {"test": random_images(9, shape=(3, 4, 1))},
        {"test": random_images(20)},  # the training set
        {"samples": random_images(9) * np.float32(np.nan)},
    ],
)
def test_memorization_refuses_invalid_sets(changed):
    sets = {
        "train": random_images(20), "test": random_images(9, 1), "samples": random_images(9, 2)
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"."):
        generative_metrics.memorization(**{**sets, **changed})
