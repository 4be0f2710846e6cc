"""Augmentations: pure functions of (seed, id, copy), and each does what its name says."""

import itertools

import numpy as np
import pytest

from functa.data import augmentation

NONE = {"flip": False, "crop": "none", "crop_padding": 4, "crop_min_area": 0.5}
EVERYTHING = NONE | {"flip": True, "crop": "resize"}


def noise(shape=(8, 6, 3)):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def copies(image, n, *, shape=None, **options):
    settings = NONE | options | {"shape": shape or image.shape[:2]}
    return [
        augmentation.augment(image, seed=3, example_id=7, copy=copy, **settings)
        for copy in range(1, n + 1)
    ]


def ramp(axis, size=(120, 90)):
    """Grey pixels that hold their own position along an axis."""
    positions = np.arange(size[axis], dtype=np.uint8)
    positions = positions[:, None] if axis == 0 else positions[None, :]
    return np.broadcast_to(positions[..., None], (*size, 1))


def box(seen):
    """Border and length that a resized ramp shows, along its own axis; pixel centres at k + 1/2."""
    n = len(seen)
    slope = (float(seen[-4]) - float(seen[3])) / (n - 7)  # away from the clipped ends
    return float(seen[3]) + 0.5 - 3.5 * slope, n * slope


def test_copy_0_is_the_image_itself():
    image = noise()
    same = augmentation.augment(image, shape=(8, 6), seed=0, example_id=1, copy=0, **EVERYTHING)
    np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize("crop", ["pad", "resize"])
def test_depends_on_seed_id_and_copy_alone(crop):
    image = noise((32, 32, 3))
    options = EVERYTHING | {"crop": crop, "crop_padding": 15}
    made = {}
    for seed, example, copy in itertools.product((0, 1), (0, 5), (1, 2)):
        call = {"shape": (32, 32), "seed": seed, "example_id": example, "copy": copy}
        made[seed, example, copy] = augmentation.augment(image, **call, **options)
        typed = call | {"example_id": np.int64(example), "copy": np.int32(copy)}
        again = augmentation.augment(image.copy(), **typed, **options)
        np.testing.assert_array_equal(again, made[seed, example, copy])
        assert again.shape == image.shape
        assert again.dtype == np.uint8
    assert len({each.tobytes() for each in made.values()}) == 8
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


def test_pad_cuts_every_window_of_the_black_frame():
    image = np.maximum(noise((5, 4, 1)), 1)
    padded = np.zeros((9, 8, 1), np.uint8)
    padded[2:7, 2:6] = image
    windows = {
        padded[top : top + 5, left : left + 4].tobytes(): (top, left)
        for top, left in itertools.product(range(5), range(5))
    }
    seen = [windows[copy.tobytes()] for copy in copies(image, 400, crop="pad", crop_padding=2)]
    counts = [seen.count(place) for place in itertools.product(range(5), range(5))]
    assert min(counts) >= 4  # 16 are expected
    assert max(counts) <= 34


def test_pad_of_0_changes_nothing():
    image = noise()
    for copy in copies(image, 5, crop="pad", crop_padding=0):
        np.testing.assert_array_equal(copy, image)


def test_the_order_of_draws_is_fixed():
    # A functaset's shard that is made again must hold the bytes it had.
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) + 1
    (copy,) = copies(image, 1, flip=True, crop="pad", crop_padding=1)
    assert copy[..., 0].tolist() == [[0, 0, 0, 0], [4, 3, 2, 1], [8, 7, 6, 5], [12, 11, 10, 9]]


def test_resize_cuts_boxes_of_the_asked_area_and_aspect():
    h, w = 120, 90
    rows = copies(ramp(0), 200, crop="resize", crop_min_area=0.4)
    columns = copies(ramp(1), 200, crop="resize", crop_min_area=0.4)
    areas, ratios, centres = [], [], []
    for row, column in zip(rows, columns, strict=True):  # the same boxes: same seed, id, copy
        top, box_h = box(row[:, 40, 0])
        left, box_w = box(column[40, :, 0])
        assert top > -1.5
        assert left > -1.5
        assert top + box_h < h + 1.5
        assert left + box_w < w + 1.5
        areas.append(box_h * box_w / (h * w))
        ratios.append((box_w / w) / (box_h / h))
        centres.append(((top + box_h / 2) / h, (left + box_w / 2) / w))
    assert 0.38 < min(areas) < 0.45
    assert 0.93 < max(areas) < 1.02
    assert np.mean(areas) == pytest.approx(0.7, abs=0.04)
    assert 0.73 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.37
    assert np.mean(centres, axis=0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert np.std(centres) > 0.03


@pytest.mark.parametrize("size", [(80, 240), (240, 64), (120, 120)])
def test_parts_of_a_photograph_have_the_asked_area_and_the_aspect_of_the_copies(size):
    made = [
        copies(ramp(axis, size), 200, shape=(48, 32), crop="resize", crop_min_area=0.2)
        for axis in (0, 1)
    ]
    areas, free = [], 0
    for row, column in zip(*made, strict=True):
        assert row.shape == (48, 32, 1)
        top, box_h = box(row[:, 16, 0])
        left, box_w = box(column[24, :, 0])
        assert min(top, left) > -1.5
        assert top + box_h < size[0] + 1.5
        assert left + box_w < size[1] + 1.5
        areas.append(box_h * box_w / (size[0] * size[1]))
        ratio = box_w / box_h / (32 / 48)
        inside = 0.7 < ratio < 1.43  # positions are rounded to pixels
        free += inside
        assert inside or box_h > size[0] - 2 or box_w > size[1] - 2
    assert 0.19 < min(areas) < 0.25
    assert 0.9 < max(areas) < 1.05
    assert free > 15


def test_resize_to_the_whole_area_changes_nothing():
    image = noise((9, 7, 3))
    for copy in copies(image, 5, crop="resize", crop_min_area=1.0):
        np.testing.assert_array_equal(copy, image)


def test_resize_treats_channels_alike():
    grey = noise((12, 12, 1))
    one = copies(grey, 3, crop="resize")
    three = copies(np.repeat(grey, 3, axis=-1), 3, crop="resize")
    for single, triple in zip(one, three, strict=True):
        np.testing.assert_array_equal(np.repeat(single, 3, axis=-1), triple)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": "centre"}, "'centre'"),
        ({"crop_padding": -1}, "-1"),
        ({"crop_min_area": 0.0}, "0.0"),
        ({"crop_min_area": 1.5}, "1.5"),
    ],
)
def test_refuses_what_it_cannot_do(changes, words):
    with pytest.raises(ValueError, match=words):
        copies(noise(), 1, **changes)


def test_refuses_other_arrays():
    for wrong in (noise()[None], noise().astype(np.float32)):
        with pytest.raises(ValueError, match="one image"):
            copies(wrong, 1)


@pytest.mark.parametrize(("crop", "copy"), [("pad", 1), ("none", 1), ("resize", 0)])
def test_only_parts_can_have_another_shape(crop, copy):
    with pytest.raises(ValueError, match=f"has no copy {copy} of"):
        augmentation.augment(
            noise((9, 9, 1)), shape=(8, 8), seed=0, example_id=0, copy=copy, **NONE | {"crop": crop}
        )
