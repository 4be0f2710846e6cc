import itertools

import numpy as np
import pytest

from functa.data import images
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


def ramp(axis, size=(120, 90)):
    """A gray image whose pixels hold their own position along an axis."""
    positions = np.arange(size[axis], dtype=np.uint8)
    positions = positions[:, None] if axis == 0 else positions[None, :]
    return np.broadcast_to(positions[..., None], (*size, 1))


def box_of(line):
    """Start and length of the box that a resized ramp shows; pixel centers are at k + 1/2."""
    n = len(line)
    slope = (float(line[-4]) - float(line[3])) / (n - 7)  # not at the clipped ends
    return float(line[3]) + 0.5 - 3.5 * slope, n * slope


def boxes(size, count, *, shape, min_area):
    """(top, left, height, width) of the boxes of copies; both ramps give the same boxes."""
    options = {"shape": shape, "crop": "resize", "crop_min_area": min_area}
    rows, columns = (copies(ramp(axis, size), count, **options) for axis in (0, 1))
    for row, column in zip(rows, columns, strict=True):
        assert row.shape == (*shape, 1)
        top, height = box_of(row[:, shape[1] // 2, 0])
        left, width = box_of(column[shape[0] // 2, :, 0])
        assert min(top, left) > -1.5
        assert top + height < size[0] + 1.5
        assert left + width < size[1] + 1.5
        yield top, left, height, width


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


def test_resize_cuts_boxes_of_the_requested_area_and_aspect_ratio():
    h, w = 120, 90
    areas, ratios, centers = [], [], []
    for top, left, height, width in boxes((h, w), 200, shape=(h, w), min_area=0.4):
        areas.append(height * width / (h * w))
        ratios.append((width / w) / (height / h))
        centers.append(((top + height / 2) / h, (left + width / 2) / w))
    assert 0.38 < min(areas) < 0.45
    assert 0.93 < max(areas) < 1.02
    assert np.mean(areas) == pytest.approx(0.7, abs=0.04)
    assert 0.73 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.37
    assert np.mean(centers, axis=0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert np.std(centers) > 0.03


@pytest.mark.parametrize("size", [(80, 240), (240, 64), (120, 120)])
def test_boxes_of_other_shapes_have_the_aspect_ratio_of_the_copies(size):
    areas, free = [], 0
    for _, _, height, width in boxes(size, 200, shape=(48, 32), min_area=0.2):
        areas.append(height * width / (size[0] * size[1]))
        inside = 0.7 < width / height / (32 / 48) < 1.43  # positions are rounded to pixels
        free += inside
        assert inside or height > size[0] - 2 or width > size[1] - 2
    assert 0.19 < min(areas) < 0.25
    assert 0.9 < max(areas) < 1.05
    assert free > 15


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
