"""Judging: closed forms, floors, corruption, and what is refused."""

import numpy as np
import pytest

from functa.evaluation import distances, features, generative_metrics
from functa.evaluation.features import Extractor

PIXELS = Extractor("pixels", lambda images: images.reshape(len(images), -1))
SETS = ("test", "reconstructions", "samples", "gaussian")


def pictures(count, seed=0, shape=(3, 3, 1)):
    """Smooth random pictures: their pixels are not independent, as those of real ones are not."""
    random = np.random.default_rng(seed)
    rough = random.normal(0.5, 0.1, (count, *shape))
    return np.clip((rough + rough.mean(axis=(1, 2), keepdims=True)) / 2, 0, 1).astype(np.float32)


def judged(extractor=PIXELS, seed=0, **changed):
    given = {name: pictures(200, number) for number, name in enumerate(SETS)}
    return generative_metrics.judge(extractor, **{**given, **changed}, seed=seed)


def frechet(first, second):
    flat = (images.reshape(len(images), -1) for images in (first, second))
    return distances.frechet_distance(*map(distances.fit_gaussian, flat))


def test_samples_of_the_same_distribution_are_at_the_floor():
    got = judged()
    floor = got["frechet_floor"]
    assert floor < 0.1 * frechet(pictures(200), pictures(200, 1) + 0.1)
    for key in ("frechet_distance", "frechet_reconstruction", "frechet_gaussian"):
        assert 0.5 * floor < got[key] < 2 * floor
    for key in ("precision", "recall", "density", "coverage"):
        assert got[key] == pytest.approx(got[f"{key}_real"], abs=0.12)
        assert got[f"{key}_real"] > 0.5
    for key in ("kernel_distance", "kernel_distance_floor"):
        assert abs(got[key]) < 4 * got[f"{key}_standard_error"]
    assert (got["frechet_features"], got["frechet_images"]) == ("pixels", 100)
    assert "fid" not in got


def test_a_shift_adds_its_square():
    """Samples that are the test images moved by 0.1 in all 9 pixels."""
    test = pictures(200)
    # Sets of equal length are divided alike: each half is held against itself, moved.
    got = judged(test=test, samples=test + np.float32(0.1))
    assert got["frechet_distance"] == pytest.approx(9 * 0.1**2, rel=1e-4)


def test_every_distance_is_of_equally_many_pictures(monkeypatch):
    sizes = []

    def fit(rows):
        sizes.append(len(rows))
        return distances.Gaussian(rows.mean(0), np.eye(9))

    monkeypatch.setattr(distances, "fit_gaussian", fit)
    got = judged(samples=pictures(91, 5), gaussian=pictures(300, 6))
    assert sizes == [45] * 8
    assert got["frechet_images"] == 45


def test_halves_are_disjoint_random_and_alike_for_equal_lengths():
    rows = np.arange(50)[:, None]
    first, second = generative_metrics._halves(rows, 20, 0)
    assert len(np.unique(np.concatenate([first, second]))) == 40
    assert (np.sort(first[:, 0]) != np.arange(20)).any()
    np.testing.assert_array_equal(generative_metrics._halves(rows + 7, 20, 0)[1], second + 7)
    assert (generative_metrics._halves(rows, 20, 1)[0] != first).any()


def test_reconstructions_are_not_held_against_their_originals():
    """Perfect ones are as far from real pictures as others of these are."""
    test = pictures(200)
    got = judged(test=test, reconstructions=test)
    assert got["frechet_reconstruction"] == pytest.approx(got["frechet_floor"])
    assert got["frechet_floor"] > 0


def test_each_number_is_of_its_own_set():
    far = pictures(200, 9) * np.float32(0.5)
    usual = judged()
    for name, key in (
        ("reconstructions", "frechet_reconstruction"),
        ("samples", "frechet_distance"),
        ("gaussian", "frechet_gaussian"),
    ):
        got = judged(**{name: far})
        assert got[key] > 10 * usual[key]
        others = {"frechet_reconstruction", "frechet_distance", "frechet_gaussian"} - {key}
        assert all(got[other] == usual[other] for other in others)
        assert got["frechet_floor"] == usual["frechet_floor"]
        assert got["kernel_distance_floor"] == usual["kernel_distance_floor"]
    got = judged(samples=far)
    assert got["kernel_distance"] > 10 * got["kernel_distance_standard_error"]
    for key in ("precision", "recall", "density", "coverage"):
        assert got[key] < 0.3 * got[f"{key}_real"]


def test_a_collapsed_generator_has_precision_and_no_recall():
    samples = np.repeat(pictures(5, 5), 40, axis=0)
    samples = samples + np.random.default_rng(0).uniform(0, 1e-3, samples.shape).astype(np.float32)
    got = judged(samples=samples)
    assert got["precision"] > 0.6 * got["precision_real"]
    assert got["recall"] < 0.2 * got["recall_real"]
    assert got["coverage"] < 0.7 * got["coverage_real"]


def blurred(images, times):
    for _ in range(times):
        images = (images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)) / 3
    return images.astype(np.float32)


def noisy(images, scale):
    added = np.random.default_rng(1).normal(0, 0.2 * scale, images.shape)
    return np.clip(images + added, 0, 1).astype(np.float32)


@pytest.mark.parametrize("corrupted", [blurred, noisy])
def test_distances_rise_with_corruption(corrupted):
    from sklearn import datasets

    digits = (datasets.load_digits().images / 16).astype(np.float32)[..., None]
    # In their own order one writer follows another.
    digits = np.random.default_rng(0).permutation(digits)
    test, samples, train = digits[:500], digits[500:1000], digits[1000:]
    extractor = features.fit_pca(np.rint(train * 255).astype(np.uint8), components=16)
    results = [
        generative_metrics.judge(
            extractor,
            test=test,
            reconstructions=corrupted(test, amount),
            samples=corrupted(samples, amount),
            gaussian=corrupted(samples, amount),
            seed=0,
        )
        for amount in (0, 1, 2, 3)
    ]
    for key in (
        "frechet_distance",
        "frechet_reconstruction",
        "frechet_gaussian",
        "kernel_distance",
    ):
        values = [result[key] for result in results]
        assert min(np.diff(values)) > 0
        assert values[3] > 2 * abs(values[0])
    assert results[3]["coverage"] < results[0]["coverage"]
    assert len({result["frechet_floor"] for result in results}) == 1


def test_the_division_is_by_seed():
    assert judged() == judged()
    other = judged(seed=1)
    for key, value in judged().items():
        if key not in ("frechet_features", "frechet_images"):
            assert other[key] != value


def test_only_inception_gives_a_fid():
    sets = {
        name: pictures(count, count) for name, count in zip(SETS, (60, 60, 90, 80), strict=True)
    }
    got = judged(Extractor("inception", PIXELS.extract), **sets)
    assert got["fid"] == pytest.approx(frechet(sets["test"], sets["samples"]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"test": pictures(39)}, "test: 39 images; at least 40"),
        ({"samples": pictures(39)}, "samples: 39 images; at least 40"),
        ({"gaussian": pictures(0)}, "gaussian: 0 images"),
        ({"samples": pictures(90, shape=(3, 4, 1))}, r"samples are \[3, 4, 1\], .* \[3, 3, 1\]"),
        ({"reconstructions": pictures(150)}, "150 reconstructions of 200 test images"),
        ({"samples": np.zeros((90, 3, 3, 1), np.uint8)}, "samples must be images .* uint8"),
        ({"gaussian": pictures(90)[..., 0]}, r"gaussian must be images .* \[90, 3, 3\]"),
    ],
)
def test_what_cannot_be_judged_is_told(changed, told):
    with pytest.raises(ValueError, match=told):
        judged(**changed)


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01])
@pytest.mark.parametrize("name", SETS)
def test_numbers_that_are_no_picture_are_told(name, value):
    images = pictures(200)
    images[17, 1, 2, 0] = value
    with pytest.raises(ValueError, match=f"1 of the 200 {name} .* first number 17"):
        judged(**{name: images})


def test_copies_are_found_and_new_ones_are_not_suspected():
    train, test, fresh = pictures(500), pictures(100, 1), pictures(90, 2)
    copied = generative_metrics.memorisation(
        train=train, test=test, samples=train[[5, 17, 3]] + np.float32(1e-4)
    )
    np.testing.assert_array_equal(copied.samples.indices[:, 0], [5, 17, 3])
    assert copied.ratio < 0.01
    assert copied.samples.distances.shape == (3, 1)
    new = generative_metrics.memorisation(train=train, test=test, samples=fresh)
    assert new.ratio == pytest.approx(1, abs=0.15)
    apart = np.linalg.norm((test[:, None] - train[None]).reshape(100, 500, -1), axis=-1)
    np.testing.assert_array_equal(new.test.indices[:, 0], apart.argmin(axis=1))
    np.testing.assert_allclose(new.test.distances[:, 0], apart.min(axis=1), rtol=1e-5)
    far = generative_metrics.memorisation(train=train, test=test, samples=fresh + np.float32(1))
    apart = np.linalg.norm((1 + fresh[:, None] - train[None]).reshape(90, 500, -1), axis=-1)
    expected = np.median(apart.min(axis=1)) / np.median(new.test.distances)
    assert far.ratio == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"test": pictures(9, shape=(3, 4, 1))}, r"test are \[3, 4, 1\], the training set \[3, 3"),
        ({"samples": pictures(9)[..., 0]}, r"samples are \[3, 3\], the training set \[3, 3, 1\]"),
        ({"samples": pictures(0)}, "samples: none"),
        ({"test": pictures(20)}, "half of the test examples are in the training set"),
        ({"samples": pictures(9) * np.float32(np.nan)}, "not finite"),
    ],
)
def test_what_has_no_nearest_neighbour_is_told(changed, told):
    given = {"train": pictures(20), "test": pictures(9, 1), "samples": pictures(9, 2)}
    with pytest.raises(ValueError, match=told):
        generative_metrics.memorisation(**{**given, **changed})
