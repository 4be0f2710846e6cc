import io

import numpy as np
import pytest
from PIL import Image

from functa.data import image_arrays, image_records
from tests.support.image_sets import encode, pixels
from tests.support.image_sources import gray_png_of_16_bits, png_of_16_bits


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(pixels(1)[0]).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    actual = image_records.decode_image(stream.getvalue(), channels=3)
    np.testing.assert_array_equal(actual, np.asarray(image.convert("RGB")))


def test_refuses_16_bit_images_and_truncated_files():
    for encoded in (gray_png_of_16_bits(), png_of_16_bits()):
        with pytest.raises(ValueError, match="8 bits"):
            image_records.decode_image(encoded, channels=1)
    with pytest.raises(OSError, match="truncated"):
        image_records.decode_image(encode(pixels(1)[0])[:-40], channels=3)


def test_rounding_does_not_push_the_crop_over_the_border():
    image = pixels(1, (30, 27, 1))[0]  # 13 * (27 / 13) > 27
    assert image_arrays.crop_and_resize(image, (13, 13)).shape == (13, 13, 1)
