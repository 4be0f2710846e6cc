"""Features: the network learns, at all sizes, the same by seed; PCA against an explicit projection."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from functa.data import images as images_lib
from functa.evaluation import features


@pytest.fixture(scope="module")
def digits():
    splits = images_lib.open_splits(
        source="digits",
        name="",
        data_dir="",
        image_shape=(8, 8, 1),
        num_classes=10,
        train_split="train",
        test_split="test",
        validation_examples=137,
        max_examples=0,
        cache="host",
    )
    return {
        name: source.read(np.arange(source.num_examples))
        for name, source in splits.items()
        if name != "validation"
    }


@pytest.fixture(scope="module")
def cnn(digits):
    train, test = digits["train"], digits["test"]
    return features.train_cnn(
        train["image"],
        train["label"],
        test_images=test["image"],
        test_labels=test["label"],
        num_classes=10,
        steps=400,
        flip=False,
        seed=0,
    )


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tiny(shape, seed=0, steps=2, flip=True, **changed):
    """A network that has hardly learned: 20 images, held out as they are."""
    given = {
        "images": noise((20, *shape)),
        "labels": np.arange(20) % 3,
        "test_images": noise((20, *shape)),
        "test_labels": np.arange(20) % 3,
        "num_classes": 3,
        **changed,
    }
    images, labels = given.pop("images"), given.pop("labels")
    return features.train_cnn(images, labels, **given, steps=steps, flip=flip, seed=seed)


def test_the_network_learns_digits(cnn, digits):
    assert cnn.accuracy >= 0.97
    test = digits["test"]
    images = test["image"] / np.float32(255)
    assert np.mean(cnn.labels(images) == test["label"]) == cnn.accuracy
    logits, found = cnn.logits(images), cnn.extractor.extract(images)
    assert (logits.shape, logits.dtype) == ((360, 10), np.float32)
    assert (found.shape, found.dtype) == ((360, 64), np.float32)
    assert np.mean(found**2) == pytest.approx(1, rel=1e-5)
    assert cnn.extractor.name == "cnn"


def test_classes_lie_apart_in_the_features(cnn, digits):
    """The class of the nearest other picture in features: better than in pixels, or they are for nothing."""
    test = digits["test"]
    found = cnn.extractor.extract(test["image"] / np.float32(255))
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1) + 1e9 * np.eye(360)
    agreeing = np.mean(test["label"][apart.argmin(axis=1)] == test["label"])
    pixels = test["image"].reshape(360, -1).astype(np.float64)
    apart = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1) + 1e9 * np.eye(360)
    assert agreeing > np.mean(test["label"][apart.argmin(axis=1)] == test["label"])


def test_features_do_not_depend_on_the_batch(cnn, digits):
    images = digits["train"]["image"] / np.float32(255)
    whole = cnn.extractor.extract(images)
    assert len(whole) == 1300  # two batches and a half
    np.testing.assert_allclose(
        cnn.extractor.extract(images[1037:1038]), whole[1037:1038], atol=1e-5
    )


@pytest.mark.parametrize("shape", [(8, 8, 3), (17, 28, 1), (32, 32, 3), (4, 6, 1)])
def test_all_sizes_give_64_features(shape):
    found = tiny(shape).extractor.extract(noise((3, *shape), 1) / np.float32(255))
    assert found.shape == (3, 64)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0


def test_the_last_resolution_is_about_four():
    for side, kernel in ((4, 16), (7, 49), (8, 16), (28, 49), (32, 16), (64, 16)):
        network = features.Network(num_classes=2)
        images = np.zeros((1, side, side, 1), np.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
        assert params["features"]["kernel"].shape == (64 * kernel, 64)


def test_the_same_seed_gives_the_same_network_and_others_do_not():
    images = noise((5, 8, 8, 1), 1) / np.float32(255)
    first, again, other, straight, longer = (
        tiny((8, 8, 1), **changed).logits(images)
        for changed in ({}, {}, {"seed": 1}, {"flip": False}, {"steps": 3})
    )
    np.testing.assert_array_equal(first, again)
    for changed in (other, straight, longer):
        assert np.abs(first - changed).max() > 1e-6


def test_the_beginning_is_by_seed():
    """Black pictures are the same in every order, moved and mirrored."""
    black = {"images": np.zeros((20, 8, 8, 1), np.uint8), "labels": np.zeros(20, int)}
    images = noise((5, 8, 8, 1), 1) / np.float32(255)
    first, second = (tiny((8, 8, 1), seed=seed, **black).logits(images) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3


def test_every_step_moves_pictures_differently(monkeypatch):
    keys = []

    def record(images, *, key, flip):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return images

    class Linear(nn.Module):  # quickly compiled
        num_classes: int

        @nn.compact
        def __call__(self, images):
            rows = images.reshape(len(images), -1)
            return rows, nn.Dense(self.num_classes)(rows)

    monkeypatch.setattr(features, "Network", Linear)
    monkeypatch.setattr(features, "_augment", record)
    for seed in (0, 1):
        tiny((8, 8, 1), seed=seed, steps=3)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 6


def test_shifts_and_flips():
    images = noise((300, 32, 8, 1))
    moved = np.asarray(features._augment(images, key=jax.random.key(0), flip=True))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.zeros((3, 3, 2), int)
    for image, source in zip(moved, padded, strict=True):
        for row, column, mirror in np.ndindex(found.shape):
            cut = source[row : row + 32, column : column + 8]
            found[row, column, mirror] += np.array_equal(image, cut[:, ::-1] if mirror else cut)
    assert found.sum() == 300  # each is one of the 18
    assert found.min() > 5  # and all 18 are there, 16 or 17 times each on average


def test_every_image_is_used_before_any_is_used_again():
    rows = np.concatenate(list(features._batches(100, steps=11, seed=0)))[:700].reshape(7, 100)
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"images": noise((20, 8, 8))}, r"images must be \[n, h, w, c\] uint8, not \[20, 8, 8\]"),
        ({"images": np.zeros((20, 8, 8, 1), np.float32)}, "uint8, not .* float32"),
        ({"test_images": noise((20, 8, 9, 1))}, r"images are \[8, 8, 1\], test_images \[8, 9, 1\]"),
        ({"labels": np.arange(19) % 3}, r"20 images, but labels \[19\]"),
        (
            {"test_labels": np.arange(20)},
            r"test_labels must be integers in \[0, 3\).* from 0 to 19",
        ),
        ({"labels": np.zeros(20)}, "labels must be integers .* float64"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_cannot_be_trained_on_is_told(changed, told):
    with pytest.raises(ValueError, match=told):
        tiny((8, 8, 1), **changed)


def test_images_of_another_kind_are_refused(cnn):
    with pytest.raises(ValueError, match=r"must be \[n, 8, 8, 1\], not \[2, 8, 8, 3\]"):
        cnn.extractor.extract(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="float32 in .*, not uint8"):
        cnn.logits(noise((2, 8, 8, 1)))


def test_pca_is_a_projection_on_the_directions_of_most_variance():
    images = noise((50, 4, 3, 2))
    rows = images.reshape(50, -1) / 255
    found = features.fit_pca(images, components=5)
    assert found.name == "pca"
    some = noise((7, 4, 3, 2), 1) / np.float32(255)
    got = found.extract(some)
    assert (got.shape, got.dtype) == ((7, 5), np.float32)
    directions = np.linalg.svd(rows - rows.mean(0))[2][:5]
    scale = np.sqrt(np.mean(((rows - rows.mean(0)) @ directions.T) ** 2))
    expected = (some.reshape(7, -1) - rows.mean(0)) @ directions.T / scale
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-4)
    with pytest.raises(ValueError, match=r"must be \[n, 4, 3, 2\], not \[7, 4, 2, 3\]"):
        found.extract(some.swapaxes(2, 3))


def test_more_components_than_there_are_is_told():
    for count, most in ((5, 4), (50, 24)):
        with pytest.raises(ValueError, match=f"components=25 must be from 1 to {most}"):
            features.fit_pca(noise((count, 4, 3, 2)), components=25)
