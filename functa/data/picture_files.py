"""Picture files of any size, as a person has them: found in folders, read for a field."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from functa.data import image_arrays
from functa.runtime.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}  # Pillow mode by number of channels


def find_pictures(paths: Sequence[str]) -> list[pathlib.Path]:
    """Lists picture files: the files of `paths`, and those in its folders, sorted by name.

    Raises:
      UserError: a path does not exist, or a folder has no pictures.
    """
    pictures: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            if not path.is_file():
                raise UserError(f"{path} does not exist or is not a file")
            pictures.append(path)
            continue
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{path} has no pictures ({', '.join(SUFFIXES)})")
        pictures += files
    return pictures


def read_picture(path: pathlib.Path, *, image_shape: Sequence[int], resize: str) -> np.ndarray:
    """Reads a picture as an image [h, w, c] uint8.

    The EXIF orientation is applied. Gray becomes RGB or RGB gray (ITU-R 601) as c requires; palettes are
    looked up, transparent parts become white, and CMYK is converted. Of an animation, the first frame
    is read.

    Args:
      image_shape: (h, w, c), c 1 or 3.
      resize: "crop" or "stretch"; see image_arrays.to_batch.
    Raises:
      UserError: the file is not a picture that Pillow reads, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":
                raise UserError(f"{path} has more than 8 bits per channel (mode {picture.mode})")
            pixels = ImageOps.exif_transpose(picture)
            if pixels.has_transparency_data:
                rgba = pixels.convert("RGBA")
                pixels = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            pixels = pixels.convert(_MODES[image_shape[2]])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable picture: {error}") from error
    h, w, c = image_shape
    array = np.asarray(pixels).reshape(pixels.height, pixels.width, c)
    return image_arrays.resize_image(array, (h, w), resize)
