import io

import numpy as np
import pytest
from PIL import Image

from functa.data import image_records
from tests.support.image_sets import encode, pixels


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(pixels(1)[0]).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    actual = image_records.decode_image(stream.getvalue(), image_shape=(6, 5, 3), resize=False)
    np.testing.assert_array_equal(actual, np.asarray(image.convert("RGB")))


def test_refuses_16_bit_images_other_sizes_and_truncated_files():
    deep = io.BytesIO()
    Image.fromarray(np.full((6, 5), 40000, np.uint16)).save(deep, "PNG")
    encoded = encode(pixels(1)[0])
    with pytest.raises(ValueError, match="8 bits"):
        image_records.decode_image(deep.getvalue(), image_shape=(6, 5, 1), resize=False)
    with pytest.raises(ValueError, match="5x6"):
        image_records.decode_image(encoded, image_shape=(5, 6, 3), resize=False)
    with pytest.raises(OSError, match="truncated"):
        image_records.decode_image(encoded[:-40], image_shape=(6, 5, 3), resize=False)
