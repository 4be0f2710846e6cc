"""Arrays as pictures, read back from the PNG."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from functa.runtime import image_io


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def random_images(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_png_holds_the_rounded_values(shape):
    image = random_images(shape)
    expected = np.rint(image * 255).astype(np.uint8)
    expected = expected[..., 0] if shape[-1] == 1 else expected
    np.testing.assert_array_equal(decode(image_io.png(image)), expected)
    np.testing.assert_array_equal(
        decode(image_io.png(np.rint(image * 255).astype(np.uint8))), expected
    )


def test_values_outside_are_clipped_and_every_float_type_is_taken():
    image = np.array([[-0.5, 0.0], [1.0, 7.0]])
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(
            decode(image_io.png(image.astype(dtype))), [[0, 0], [255, 255]]
        )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[np.nan, 1.0], [np.inf, 0.0]]), "2 of the 4 values of an image are not finite"),
        (np.zeros((2, 2), np.int32), "not int32"),
        (np.zeros((2, 2, 2)), r"not \[2, 2, 2\]"),
        (np.zeros(3), r"not \[3\]"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        image_io.png(image)


def test_data_uri_is_the_png():
    image = random_images((4, 4, 3))
    kind, text = image_io.data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(text) == image_io.png(image)


def test_enlarge_makes_squares():
    images = random_images((2, 3, 4, 1))
    large = image_io.enlarge(images, 5)
    assert large.shape == (2, 15, 20, 1)
    for row in range(15):
        for column in range(20):
            np.testing.assert_array_equal(large[:, row, column], images[:, row // 5, column // 5])


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3)])
def test_sheet_places_every_image(n, columns, rows):
    images = random_images((n, 4, 6, 3))
    sheet = image_io.sheet(images, gap=2)
    assert sheet.shape == (rows * 6 - 2, columns * 8 - 2, 3)
    for index in range(n):
        top, left = index // columns * 6, index % columns * 8
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], images[index])
        sheet[top : top + 4, left : left + 6] = 0.5
    assert np.all(sheet == 0.5)


@pytest.mark.parametrize("shape", [(0, 4, 4, 1), (4, 4, 1)])
def test_sheet_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="a sheet is made of images"):
        image_io.sheet(np.zeros(shape), gap=1)


def test_diverging_tells_sign_by_colour_and_size_by_opacity():
    values = np.array([[-2.0, -0.5], [0.0, 0.5], [2.0, 9.0]])
    colours = image_io.diverging(values, 2.0)
    np.testing.assert_array_equal(colours[:, :, 3], [[255, 128], [0, 128], [255, 255]])
    np.testing.assert_array_equal(colours[0, 0, :3], image_io.NEGATIVE)
    np.testing.assert_array_equal(colours[2, 1, :3], image_io.POSITIVE)


def test_diverging_scales_each_channel_and_draws_nothing_for_a_dead_one():
    values = np.stack([np.full((2, 2), 3.0), np.zeros((2, 2))], axis=-1)
    colours = image_io.diverging(values, np.array([3.0, 0.0]))
    assert np.all(colours[..., 0, 3] == 255)
    assert np.all(colours[..., 1, 3] == 0)


def test_shrink_averages_and_keeps_what_is_small():
    image = np.zeros((8, 4, 3), np.uint8)
    image[:2, :2] = 100
    image[0, 0] = 200
    small = image_io.shrink(image, 4)
    assert small.shape == (4, 2, 3)
    np.testing.assert_array_equal(small[0, 0], [125, 125, 125])
    assert not small[1:].any()
    np.testing.assert_array_equal(image_io.shrink(image, 8), image)
    assert image_io.shrink(np.zeros((3, 9, 1)), 4).shape == (1, 4, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_shows_its_frames_in_turn_for_ever(channels):
    frames = np.zeros((3, 4, 6, channels), np.float32)
    frames[1], frames[2, :2] = 1, 1
    with Image.open(io.BytesIO(image_io.gif(frames, seconds=[0.1, 0.2, 1.5]))) as film:
        assert film.info["loop"] == 0
        for number, seconds in enumerate((0.1, 0.2, 1.5)):
            film.seek(number)
            assert film.info["duration"] == round(1000 * seconds)
            there = np.asarray(film.convert("L")) / 255
            np.testing.assert_allclose(there, frames[number, ..., 0], atol=0.01)
    with pytest.raises(ValueError, match="3 frames with 2 durations make no film"):
        image_io.gif(frames, seconds=[0.1, 0.1])


def test_a_sheet_has_the_columns_asked_for():
    images = random_images((6, 2, 2, 1))
    page = image_io.sheet(images, gap=1, columns=2)
    assert page.shape == (8, 5, 1)
    np.testing.assert_array_equal(page[3:5, :2], images[2])
