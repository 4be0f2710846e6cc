"""Copies as they are encoded: of photographs, parts of what was kept and not of what was read."""

import numpy as np
import pytest

from functa.data import images
from functa.data.augmentation import augment
from functa.data.augmented_copies import read_copies
from tests.data import images_test

CROP = {"seed": 3, "flip": True, "crop": "resize", "crop_padding": 1, "crop_min_area": 0.2}


@pytest.fixture(params=["host", "none"])
def photographs(request, tmp_path):
    """A source of 8x8 images of wide photographs, and the photographs."""
    wide = [images_test.pixels(1, (20, 50 + 10 * k, 3), seed=k)[0] for k in range(9)]
    encoded = [images_test.encode(each) for each in wide]
    splits = {"train": (encoded, [0] * 9), "test": (encoded, [0] * 9)}
    images_test.write_set(tmp_path / "small" / "1.0.0", splits, shape=(None, None, 3))
    settings = images_test.SMALL | {
        "data_dir": tmp_path,
        "image_shape": (8, 8, 3),
        "validation_examples": 2,
        "cache": request.param,
    }
    return images.open_splits(**settings), wide


def test_parts_are_cut_out_of_photographs_as_they_are_kept(photographs):
    sources, wide = photographs
    indices, copies = np.array([4, 4, 4, 1]), np.array([0, 1, 2, 3])
    batch = read_copies(sources["train"], indices, copies, **CROP)
    assert batch["id"].tolist() == [4, 4, 4, 1]
    read = sources["train"].read(np.array([4]))["image"][0]
    np.testing.assert_array_equal(batch["image"][0], read)
    for k in (1, 2, 3):
        expected = augment(
            wide[indices[k]], shape=(8, 8), example_id=indices[k], copy=copies[k], **CROP
        )
        np.testing.assert_array_equal(batch["image"][k], expected)
        of_read = augment(read, shape=(8, 8), example_id=indices[k], copy=copies[k], **CROP)
        assert not np.array_equal(batch["image"][k], of_read)


def test_validation_keeps_its_photographs(photographs):
    sources, wide = photographs
    batch, whole = sources["validation"].read_whole(np.arange(2))
    for name, values in sources["validation"].read(np.arange(2)).items():
        np.testing.assert_array_equal(batch[name], values)
    for found, kept in zip(whole, wide[7:], strict=True):
        np.testing.assert_array_equal(found, kept)


def test_other_crops_are_of_what_is_read(photographs):
    sources, _ = photographs
    settings = CROP | {"crop": "pad"}
    batch = read_copies(sources["train"], np.array([2]), np.array([5]), **settings)
    read = sources["train"].read(np.array([2]))["image"][0]
    expected = augment(read, shape=(8, 8), example_id=2, copy=5, **settings)
    np.testing.assert_array_equal(batch["image"][0], expected)
