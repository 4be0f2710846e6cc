import itertools
from unittest import mock

import numpy as np
import pytest

from functa.data import augmentation, images
from functa.data.augmentation import augment, read_copies
from tests.support import image_sets

NONE = {"flip": False, "crop": "none", "crop_padding": 4, "crop_min_area": 0.5}
RESIZE = {"seed": 3, "flip": True, "crop": "resize", "crop_padding": 1, "crop_min_area": 0.2}


def noise(shape=(8, 6, 3)):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def copies(image, count, *, shape=None, **options):
    settings = NONE | options | {"shape": shape or image.shape[:2]}
    return [
        augment(image, seed=3, example_id=7, copy=copy, **settings) for copy in range(1, count + 1)
    ]


@pytest.fixture
def boxes(monkeypatch):
    """Function of the size of an image -> boxes [copies, 4] that crop="resize" cuts out of it."""

    def record(size, *, shape, min_area):
        resize = mock.Mock(return_value=np.zeros((*shape, 1), np.uint8))
        monkeypatch.setattr(augmentation, "resize_box", resize)
        image = np.zeros((*size, 1), np.uint8)
        copies(image, 1000, shape=shape, crop="resize", crop_min_area=min_area)
        return np.array([call.args[2] for call in resize.call_args_list])

    return record


@pytest.mark.parametrize("crop", ["pad", "resize"])
def test_copy_depends_on_seed_id_and_number_alone(crop):
    image = noise((32, 32, 3))
    options = NONE | {"flip": True, "crop": crop, "crop_padding": 15, "shape": (32, 32)}
    results = set()
    for seed, example, copy in itertools.product((0, 1), (0, 5), (1, 2)):
        actual = augment(image, seed=seed, example_id=example, copy=copy, **options)
        again = augment(image.copy(), seed=seed, example_id=example, copy=copy, **options)
        np.testing.assert_array_equal(again, actual)
        assert (actual.shape, actual.dtype) == (image.shape, np.uint8)
        results.add(actual.tobytes())
    assert len(results) == 8
    np.testing.assert_array_equal(image, noise((32, 32, 3)))


def test_flip_mirrors_half_of_the_copies():
    image = noise()
    mirrored = 0
    for copy in copies(image, 400, flip=True):
        if np.array_equal(copy, image[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(copy, image)
    assert 160 <= mirrored <= 240
    assert all(np.array_equal(copy, image) for copy in copies(image, 50))


def test_pad_cuts_every_window_of_the_padded_image():
    image = np.maximum(noise((5, 4, 1)), 1)
    padded = np.zeros((9, 8, 1), np.uint8)
    padded[2:7, 2:6] = image
    windows = {
        padded[top : top + 5, left : left + 4].tobytes(): (top, left)
        for top, left in itertools.product(range(5), range(5))
    }
    actual = [windows[copy.tobytes()] for copy in copies(image, 400, crop="pad", crop_padding=2)]
    counts = [actual.count(window) for window in itertools.product(range(5), range(5))]
    assert min(counts) >= 4  # expected: 16
    assert max(counts) <= 34


def test_random_numbers_are_drawn_in_a_fixed_order():
    # A shard that is made again must have the same bytes.
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) + 1
    (copy,) = copies(image, 1, flip=True, crop="pad", crop_padding=1)
    assert copy[..., 0].tolist() == [[0, 0, 0, 0], [4, 3, 2, 1], [8, 7, 6, 5], [12, 11, 10, 9]]


@pytest.mark.parametrize("size", [(120, 90), (80, 240), (240, 64)])
def test_boxes_have_the_requested_area_and_aspect_ratio(boxes, size):
    h, w = size
    left, top, right, bottom = boxes(size, shape=(48, 32), min_area=0.2).T
    assert min(left.min(), top.min()) >= 0
    assert right.max() <= w
    assert bottom.max() <= h
    areas = (right - left) * (bottom - top) / (h * w)
    ratios = (right - left) / (bottom - top) / (32 / 48)
    assert 0.2 - 1e-9 < areas.min() < 0.23
    assert 0.97 < areas.max() < 1 + 1e-9
    assert areas.mean() == pytest.approx(0.6, abs=0.03)  # uniform
    fits = (ratios > 3 / 4 - 1e-9) & (ratios < 4 / 3 + 1e-9)
    full = np.isclose(right - left, w) | np.isclose(bottom - top, h)
    assert (fits | full).all()  # a box that is as wide or as high as the image
    assert fits.mean() > 0.05


def test_boxes_are_anywhere_and_their_log_ratios_are_uniform(boxes):
    left, top, right, bottom = boxes((120, 90), shape=(120, 90), min_area=0.4).T
    centers = np.stack([(left + right) / 180, (top + bottom) / 240])
    np.testing.assert_allclose(centers.mean(1), 0.5, atol=0.02)
    assert centers.std(1).min() > 0.05
    small = (right - left) * (bottom - top) < 120 * 90 * 0.75  # every ratio fits
    logs = np.log((right - left) / (bottom - top) * 120 / 90)[small] / np.log(4 / 3)
    assert -1 - 1e-9 < logs.min() < -0.95
    assert 0.95 < logs.max() < 1 + 1e-9
    assert logs.var() == pytest.approx(1 / 3, abs=0.05)


def test_a_box_of_the_whole_image_changes_nothing():
    image = noise((9, 7, 3))
    for copy in copies(image, 5, crop="resize", crop_min_area=1.0):
        np.testing.assert_array_equal(copy, image)


def test_resize_treats_channels_alike():
    gray = noise((12, 12, 1))
    one = copies(gray, 3, crop="resize")
    three = copies(np.repeat(gray, 3, axis=-1), 3, crop="resize")
    for single, triple in zip(one, three, strict=True):
        np.testing.assert_array_equal(np.repeat(single, 3, axis=-1), triple)


@pytest.fixture(params=["host", "none"])
def photographs(request, tmp_path):
    """Sources of 8x8 images of wide photographs, and the photographs."""
    wide = [image_sets.pixels(1, (20, 50 + 10 * k, 3), seed=k)[0] for k in range(9)]
    encoded = [image_sets.encode(image) for image in wide]
    image_sets.write_random(tmp_path / "small", 9, encoded=encoded, shape=(None, None, 3))
    settings = image_sets.SMALL | {
        "data_dir": tmp_path,
        "image_shape": (8, 8, 3),
        "validation_examples": 2,
        "cache": request.param,
    }
    return images.open_splits(**settings), wide


def test_resized_crops_are_cut_out_of_the_stored_photographs(photographs):
    sources, wide = photographs
    indices, numbers = np.array([4, 4, 4, 1]), np.array([0, 1, 2, 3])
    batch = read_copies(sources["train"], indices, numbers, **RESIZE)
    assert batch["id"].tolist() == [4, 4, 4, 1]
    image = sources["train"].read(np.array([4]))["image"][0]
    np.testing.assert_array_equal(batch["image"][0], image)
    for k in (1, 2, 3):
        options = RESIZE | {"shape": (8, 8), "example_id": int(indices[k]), "copy": int(numbers[k])}
        np.testing.assert_array_equal(batch["image"][k], augment(wide[indices[k]], **options))
        assert not np.array_equal(batch["image"][k], augment(image, **options))


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_other_copies_are_made_of_the_resized_images(photographs, crop):
    sources, _ = photographs
    settings = RESIZE | {"crop": crop}
    batch = read_copies(sources["train"], np.array([2, 2]), np.array([0, 5]), **settings)
    image = sources["train"].read(np.array([2]))["image"][0]
    expected = augment(image, shape=(8, 8), example_id=2, copy=5, **settings)
    np.testing.assert_array_equal(batch["image"], [image, expected])
