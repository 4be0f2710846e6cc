"""Images as PNG and GIF, read back; contact sheets, resizing and color maps."""

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
    pixels = expected[..., 0] if shape[-1] == 1 else expected
    np.testing.assert_array_equal(decode(image_io.png(image)), pixels)
    np.testing.assert_array_equal(decode(image_io.png(expected)), pixels)
    kind, text = image_io.data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(text) == image_io.png(image)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_outside_of_the_range_are_clipped(dtype):
    image = np.array([[-0.5, 0.0], [1.0, 7.0]], dtype)
    np.testing.assert_array_equal(image_io.to_uint8(image), [[0, 0], [255, 255]])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[np.nan, 1.0], [np.inf, 0.0]]), "2 of the 4 values"),
        (np.zeros((2, 2), np.int32), "int32"),
        (np.zeros((2, 2, 2)), r"\[2, 2, 2\]"),
        (np.zeros(3), r"\[3\]"),
    ],
)
def test_invalid_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        image_io.png(image)


def test_enlarge_repeats_pixels():
    images = random_images((2, 3, 4, 1))
    large = image_io.enlarge(images, 5)
    assert large.shape == (2, 15, 20, 1)
    for row in range(15):
        for column in range(20):
            np.testing.assert_array_equal(large[:, row, column], images[:, row // 5, column // 5])


def test_shrink_averages_large_images_only():
    image = np.zeros((8, 4, 3), np.uint8)
    image[:2, :2] = 100
    image[0, 0] = 200
    small = image_io.shrink(image, 4)
    assert small.shape == (4, 2, 3)
    np.testing.assert_array_equal(small[0, 0], [125, 125, 125])
    assert not small[1:].any()
    np.testing.assert_array_equal(image_io.shrink(image, 8), image)
    assert image_io.shrink(np.zeros((3, 9, 1)), 4).shape == (1, 4, 1)


@pytest.mark.parametrize(
    ("n", "columns", "across", "down"),
    [(1, None, 1, 1), (2, None, 2, 1), (5, None, 3, 2), (9, None, 3, 3), (6, 2, 2, 3)],
)
def test_sheet_places_every_image(n, columns, across, down):
    images = random_images((n, 4, 6, 3))
    sheet = image_io.sheet(images, gap=2, columns=columns)
    assert sheet.shape == (down * 6 - 2, across * 8 - 2, 3)
    for index in range(n):
        top, left = index // across * 6, index % across * 8
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], images[index])
        sheet[top : top + 4, left : left + 6] = 0.5
    assert np.all(sheet == 0.5)


def test_diverging_shows_sign_by_color_and_magnitude_by_opacity():
    values = np.array([[-2.0, -0.5], [0.0, 0.5], [2.0, 9.0]])
    colors = image_io.diverging(values, 2.0)
    np.testing.assert_array_equal(colors[:, :, 3], [[255, 128], [0, 128], [255, 255]])
    np.testing.assert_array_equal(colors[0, 0, :3], image_io.NEGATIVE)
    np.testing.assert_array_equal(colors[2, 1, :3], image_io.POSITIVE)
    assert not image_io.diverging(values, 0.0)[..., 3].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_shows_its_frames_repeatedly(channels):
    frames = np.zeros((3, 4, 6, channels), np.float32)
    frames[1], frames[2, :2] = 1, 1
    with Image.open(io.BytesIO(image_io.gif(frames, seconds=[0.1, 0.2, 1.5]))) as animation:
        assert animation.info["loop"] == 0
        for number, seconds in enumerate((0.1, 0.2, 1.5)):
            animation.seek(number)
            assert animation.info["duration"] == round(1000 * seconds)
            pixels = np.asarray(animation.convert("L")) / 255
            np.testing.assert_allclose(pixels, frames[number, ..., 0], atol=0.01)
    with pytest.raises(ValueError, match="2 for 3"):
        image_io.gif(frames, seconds=[0.1, 0.1])
