"""Crops of one size from a folder of PNG and JPEG files."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from etils import epath
from PIL import Image

from functa.data.image_records import open_image
from functa.runtime.errors import DataError

_NAME = re.compile(r".+\.(png|jpe?g)", re.IGNORECASE)
_MODES = {1: "L", 3: "RGB"}  # Pillow mode by number of channels

Result = TypeVar("Result")


def read_crops(
    folder: epath.PathLike, *, shapes: Sequence[tuple[int, int]], channels: int, count: int
) -> list[np.ndarray]:
    """Crops of several sizes from the same images.

    An image is cut into as many crops as fit side by side, centered. The crops are spread evenly
    over the images in the order of their names and, in each image, row by row. Only images that a
    crop is taken from are decoded.

    Args:
      shapes: (h, w) of the crops, in pixels.
      channels: 1 (gray) or 3 (RGB); other images are converted.
      count: number of crops of every shape, at least 1.
    Returns:
      [count, h, w, channels] uint8 for each shape.
    Raises:
      DataError: no such folder, no image in it, images that cannot be read or are smaller than a
        crop, or fewer crops than `count`.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise DataError([f"{folder} is not a folder of images"])
    paths = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    if not paths:
        raise DataError([f"{folder} holds no PNG or JPEG file"])
    problems: list[str] = []
    sizes = [_read(path, lambda image: (image.height, image.width), problems) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        small = [f"{h}x{w}" for h, w in shapes if size and (h > size[0] or w > size[1])]
        if small and size:
            problems.append(
                f"{path} has {size[0]}x{size[1]} pixels: too small for a crop of {' or '.join(small)}"
            )
    _raise_problems(problems)
    corners = [_corners([size for size in sizes if size], shape) for shape in shapes]
    for (h, w), every in zip(shapes, corners, strict=True):
        if len(every) < count:
            problems.append(
                f"{folder} gives {len(every)} crops of {h}x{w} pixels, fewer than the {count} needed"
            )
    _raise_problems(problems)
    chosen = [
        [every[k] for k in np.linspace(0, len(every) - 1, count).astype(int)] for every in corners
    ]
    crops = [np.empty((count, h, w, channels), np.uint8) for h, w in shapes]
    for number in sorted({corner[0] for corners in chosen for corner in corners}):
        pixels = _read(paths[number], lambda image: _pixels(image, channels), problems)
        for target, corners_of_shape, (h, w) in zip(crops, chosen, shapes, strict=True):
            for k, (image, row, column) in enumerate(corners_of_shape):
                if image == number and pixels is not None:
                    target[k] = pixels[row : row + h, column : column + w]
    _raise_problems(problems)
    return crops


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise DataError(problems)


def _read(
    path: epath.Path, function: Callable[[Image.Image], Result], problems: list[str]
) -> Result | None:
    """function(image) of a file; None and a problem if the image is damaged."""
    try:
        with open_image(path.read_bytes()) as image:
            return function(image)
    except Exception as error:  # a damaged image can make Pillow raise anything
        problems.append(f"{path} cannot be read ({type(error).__name__}: {error})")
        return None


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """[h, w, channels] uint8."""
    return np.asarray(image.convert(_MODES[channels])).reshape(image.height, image.width, channels)


def _corners(
    sizes: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """(index of the image, first row, first column) of every crop that fits."""
    h, w = shape
    return [
        (index, row, column)
        for index, (height, width) in enumerate(sizes)
        for row in range(height % h // 2, height - h + 1, h)
        for column in range(width % w // 2, width - w + 1, w)
    ]
