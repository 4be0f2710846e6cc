"""Features: the network learns and is reproducible; PCA against an explicit projection."""

import jax
import numpy as np
import pytest
from sklearn import datasets, metrics, model_selection

from functa.evaluation import features
from functa.fields.pixels import to_float


@pytest.fixture(scope="module")
def digits():
    """(train images, test images, train labels, test labels): 1,300 digits, 497 of other writers."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) / 16 * 255).astype(np.uint8)
    return model_selection.train_test_split(images, labels, train_size=1300, shuffle=False)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def cnn(digits):
    images, test_images, labels, _ = digits
    return features.train_cnn(
        images, labels, test_images=test_images, num_classes=10, steps=400, flip=False, seed=0
    )


def test_classes_are_further_apart_in_features_than_in_pixels(cnn, digits):
    _, test_images, _, test_labels = digits
    extracted = cnn.extract(to_float(test_images))
    assert (cnn.name, extracted.shape, extracted.dtype) == ("cnn", (497, 64), np.float32)
    assert np.mean(extracted**2) == pytest.approx(1, rel=1e-5)
    pixels = to_float(test_images).reshape(497, -1)
    separation = metrics.silhouette_score(extracted, test_labels)
    assert separation > 1.5 * metrics.silhouette_score(pixels, test_labels)


def test_features_do_not_depend_on_the_batch(cnn, digits):
    images = to_float(digits[0])  # two batches and a half
    whole = cnn.extract(images)
    np.testing.assert_allclose(cnn.extract(images[1037:1038]), whole[1037:1038], atol=1e-5)


def test_last_resolution_is_4_to_7_pixels():
    for side, points in ((4, 16), (7, 49), (8, 16), (28, 49), (32, 16), (64, 16)):
        network = features.Cnn(num_classes=2)
        images = np.zeros((1, side, side, 3), np.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
        assert params["features"]["kernel"].shape == (64 * points, 64)


class Linear(features.nn.Module):
    """Stand-in for Cnn that compiles quickly."""

    @features.nn.compact
    def __call__(self, images):
        rows = images.reshape(len(images), -1)
        return rows, features.nn.Dense(3)(rows)


def linear_kernel(images=None, labels=None, steps=2, flip=True, seed=0):
    images = noise((20, 8, 8, 1)) if images is None else images
    labels = np.arange(20) % 3 if labels is None else labels
    params = features.train_network(Linear(), images, labels, steps=steps, flip=flip, seed=seed)
    return params["Dense_0"]["kernel"]


@pytest.mark.slow
def test_training_is_determined_by_the_seed_and_the_settings():
    kernel = linear_kernel()
    np.testing.assert_array_equal(kernel, linear_kernel())
    for changed in ({"seed": 1}, {"flip": False}, {"steps": 3}):
        assert np.abs(kernel - linear_kernel(**changed)).max() > 1e-6


def test_initialization_depends_on_the_seed():
    """Black images are equal in every order, shifted and mirrored."""
    black = {"images": np.zeros((20, 8, 8, 1), np.uint8), "labels": np.zeros(20, int)}
    first, second = (linear_kernel(seed=seed, **black) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3


def test_every_training_step_has_its_own_augmentation(monkeypatch):
    keys = []

    def record(images, *, key, flip):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return images

    monkeypatch.setattr(features, "shift_and_flip", record)
    for seed in (0, 1):
        linear_kernel(seed=seed, steps=3)
    jax.effects_barrier()
    assert len(set(keys)) == 6


def test_shifts_and_flips_are_uniform():
    """Images of 32x8 move by at most one pixel: 8 // 16 is 0."""
    images = noise((300, 32, 8, 1))
    moved = np.asarray(features.shift_and_flip(images, key=jax.random.key(0), flip=True))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    counts = np.zeros((3, 3, 2), int)
    for image, source in zip(moved, padded, strict=True):
        for row, column, mirror in np.ndindex(counts.shape):
            crop = source[row : row + 32, column : column + 8]
            counts[row, column, mirror] += np.array_equal(image, crop[:, ::-1] if mirror else crop)
    assert counts.sum() == 300  # each image is one of the 18
    assert counts.min() > 5  # each of the 18 occurs, 17 times on average
    large = np.asarray(
        features.shift_and_flip(noise((99, 64, 64, 1)), key=jax.random.key(0), flip=False)
    )
    assert max(np.argmax(image.any(axis=(1, 2))) for image in large) == 4  # 64 // 16


def test_every_epoch_is_a_new_permutation():
    rows = np.concatenate(list(features._batches(100, steps=11, seed=0)))[:700].reshape(7, 100)
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
    assert (rows[0] != rows[1]).any()


def test_pca_projects_on_the_directions_of_largest_variance():
    images = noise((50, 4, 3, 2))
    rows = images.reshape(50, -1) / 255
    extractor = features.fit_pca(images, components=5)
    others = to_float(noise((7, 4, 3, 2), 1))
    extracted = extractor.extract(others)
    assert (extractor.name, extracted.shape, extracted.dtype) == ("pca", (7, 5), np.float32)
    directions = np.linalg.svd(rows - rows.mean(0))[2][:5]
    scale = np.sqrt(np.mean(((rows - rows.mean(0)) @ directions.T) ** 2))
    expected = (others.reshape(7, -1) - rows.mean(0)) @ directions.T / scale
    np.testing.assert_allclose(np.abs(extracted), np.abs(expected), atol=1e-4)
