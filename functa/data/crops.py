"""Pieces of pictures: a folder of PNG and JPEG files, cut into crops of one size."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from functa.data.image_records import open_image

_IMAGE_NAME = re.compile(r".+\.(png|jpe?g)", re.IGNORECASE)
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


def read_crops(
    folder: epath.PathLike, *, shapes: Sequence[tuple[int, int]], channels: int, count: int
) -> list[np.ndarray]:
    """Crops of several sizes from the same pictures.

    A picture is cut into as many crops as fit side by side; what is left over lies at opposite
    borders alike. `count` crops are taken, evenly spread over the pictures in the order of their
    names and, in each, row by row. Only pictures that a crop is taken from are decoded.

    Args:
      shapes: (h, w) of the crops, in pixels.
      channels: 1 (grey) or 3 (RGB); pictures of another kind are converted.
      count: of crops of every size, at least 1.
    Returns:
      for each shape, [count, h, w, channels] uint8.
    Raises:
      ValueError: no such folder, no picture in it, pictures that cannot be read or are smaller than
        a crop, one line each; if all serve, fewer crops than `count`.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.iterdir() if _IMAGE_NAME.fullmatch(path.name))
    if not paths:
        raise ValueError(f"{folder} holds no PNG or JPEG file")
    sizes, problems = [], []
    for path in paths:
        try:
            height, width = _size(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        sizes.append((height, width))
        small = [f"{h}x{w}" for h, w in shapes if h > height or w > width]
        if small:
            problems.append(
                f"{path} has {height}x{width} pixels: too small for a crop of {' or '.join(small)}"
            )
    if problems:
        raise ValueError("\n".join(problems))
    corners = [_corners(sizes, shape) for shape in shapes]
    problems = [
        f"{folder} gives {len(found)} crops of {h}x{w} pixels, fewer than the {count} asked for"
        for (h, w), found in zip(shapes, corners, strict=True)
        if len(found) < count
    ]
    if problems:
        raise ValueError("\n".join(problems))
    taken = [
        [found[k] for k in np.linspace(0, len(found) - 1, count).astype(int)] for found in corners
    ]
    result = [np.empty((count, h, w, channels), np.uint8) for h, w in shapes]
    for number in sorted({corner[0] for found in taken for corner in found}):
        try:
            picture = _decode(paths[number], channels)
        except ValueError as error:
            problems.append(str(error))
            continue
        for crops, found, (h, w) in zip(result, taken, shapes, strict=True):
            for place, (owner, row, column) in enumerate(found):
                if owner == number:
                    crops[place] = picture[row : row + h, column : column + w]
    if problems:
        raise ValueError("\n".join(problems))
    return result


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Image.Image]:
    """An image, its header read; what goes wrong inside is a ValueError that names the file."""
    try:
        with open_image(path.read_bytes()) as image:
            yield image
    except Exception as error:  # what a damaged image makes Pillow raise has no common class
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _size(path: epath.Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


def _decode(path: epath.Path, channels: int) -> np.ndarray:
    """[h, w, channels] uint8."""
    with _opened(path) as image:
        array = np.asarray(image.convert(_MODES[channels]))
    return array.reshape(*array.shape[:2], channels)


def _corners(
    sizes: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """(number of the picture, first row, first column) of every crop that fits."""
    h, w = shape
    return [
        (number, row, column)
        for number, (height, width) in enumerate(sizes)
        for row in range(height % h // 2, height - h + 1, h)
        for column in range(width % w // 2, width - w + 1, w)
    ]
