"""Pieces of pictures: a folder of PNG and JPEG files, cut into crops of one size."""

import re
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

_IMAGE_NAME = re.compile(r".+\.(png|jpe?g)", re.IGNORECASE)
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


def read_crops(
    folder: epath.PathLike, *, shapes: Sequence[tuple[int, int]], channels: int, count: int
) -> list[np.ndarray]:
    """Crops of several sizes from the same pictures.

    A picture is cut into as many crops as fit side by side, what is left over is left at all four
    borders alike; `count` crops are taken, evenly spread over the pictures in the order of their
    names and, in each, row by row.

    Args:
      shapes: (h, w) of the crops, in pixels.
      channels: 1 (grey) or 3 (RGB); pictures of another kind are converted.
      count: of crops of every size, at least 1.
    Returns:
      for each shape, [count, h, w, channels] uint8.
    Raises:
      ValueError: no such folder or no picture in it, one that cannot be decoded, one smaller than
        a crop, or fewer crops than `count`: all of these together, one line each.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.iterdir() if _IMAGE_NAME.fullmatch(path.name))
    if not paths:
        raise ValueError(f"{folder} holds no PNG or JPEG file")
    problems, pictures = [], []
    for path in paths:
        try:
            with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"more than 8 bits a channel (mode {image.mode})")
                array = np.asarray(image.convert(_MODES[channels]))
        except Exception as error:  # what a damaged image makes Pillow raise has no common class
            problems.append(f"{path} cannot be decoded: {type(error).__name__}: {error}")
            continue
        pictures.append(array.reshape(*array.shape[:2], channels))
        height, width = array.shape[:2]
        small = [f"{h}x{w}" for h, w in shapes if h > height or w > width]
        if small:
            problems.append(
                f"{path} has {height}x{width} pixels: too small for a crop of {' or '.join(small)}"
            )
    if problems:
        raise ValueError("\n".join(problems))
    corners = [_corners(pictures, shape) for shape in shapes]
    problems = [
        f"{folder} gives {len(found)} crops of {h}x{w} pixels, fewer than the {count} asked for"
        for (h, w), found in zip(shapes, corners, strict=True)
        if len(found) < count
    ]
    if problems:
        raise ValueError("\n".join(problems))
    result = []
    for (h, w), found in zip(shapes, corners, strict=True):
        taken = [found[k] for k in np.linspace(0, len(found) - 1, count).astype(int)]
        result.append(np.stack([pictures[n][r : r + h, c : c + w] for n, r, c in taken]))
    return result


def _corners(pictures: list[np.ndarray], shape: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(number of the picture, first row, first column) of every crop that fits."""
    h, w = shape
    found = []
    for number, picture in enumerate(pictures):
        height, width, _ = picture.shape
        top, left = height % h // 2, width % w // 2
        found += [
            (number, row, column)
            for row in range(top, height - h + 1, h)
            for column in range(left, width - w + 1, w)
        ]
    return found
