"""Crops of one size from a folder of PNG and JPEG files."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from etils import epath

from functa.data.image_records import IMAGE_NAME, decode_image, open_image
from functa.runtime.errors import DataError


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
      DataError: no such folder, images that cannot be read or are smaller than a crop, or fewer crops
        than `count`.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise DataError([f"{folder} is not a folder of images"])
    paths = sorted(path for path in folder.iterdir() if IMAGE_NAME.fullmatch(path.name))
    sizes, problems = {}, []
    for path in paths:
        try:
            with open_image(path.read_bytes()) as image:
                sizes[path] = image.height, image.width
        except Exception as error:  # a damaged image can make Pillow raise anything
            problems.append(_read_problem(path, error))
    for (height, width), (path, size) in itertools.product(shapes, sizes.items()):
        if size[0] < height or size[1] < width:
            problems.append(f"{path} has {size[0]}x{size[1]} pixels, fewer than {height}x{width}")
    corners = [_corners(sizes, shape) for shape in shapes]
    for (h, w), every in zip(shapes, corners, strict=True):
        if len(every) < count and not problems:
            problems.append(f"{folder} gives {len(every)} crops of {h}x{w} pixels, not {count}")
    if problems:
        raise DataError(problems)

    @functools.lru_cache(maxsize=1)
    def decode(path: epath.Path) -> np.ndarray:
        try:
            return decode_image(path.read_bytes(), channels=channels)
        except Exception as error:
            raise DataError([_read_problem(path, error)]) from error

    crops = []
    for (h, w), every in zip(shapes, corners, strict=True):
        chosen = [every[k] for k in np.linspace(0, len(every) - 1, count).astype(int)]
        crops.append(np.stack([decode(path)[i : i + h, j : j + w] for path, i, j in chosen]))
    return crops


def _read_problem(path: epath.Path, error: Exception) -> str:
    return f"{path} cannot be read ({type(error).__name__}: {error})"


def _corners(
    sizes: dict[epath.Path, tuple[int, int]], shape: tuple[int, int]
) -> list[tuple[epath.Path, int, int]]:
    """(image, first row, first column) of every crop that fits."""
    h, w = shape
    return [
        (path, row, column)
        for path, (height, width) in sizes.items()
        for row in range(height % h // 2, height - h + 1, h)
        for column in range(width % w // 2, width - w + 1, w)
    ]
