"""Arrays as pictures: single images, sheets of many, films, and signed numbers as colours."""

import base64
import io
import math

import numpy as np
from PIL import Image

NEGATIVE = (33, 102, 214)  # blue
POSITIVE = (214, 71, 33)  # red


def to_bytes(image: np.ndarray) -> np.ndarray:
    """[...] float in [0, 1], clipped, -> [...] uint8, rounded; uint8 as it is.

    Raises:
      ValueError: entries that are not finite, or integers of another type.
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image is uint8 or floating point, not {image.dtype}")
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise ValueError(f"{bad} of the {image.size} values of an image are not finite")
    return np.rint(np.clip(image, 0, 1).astype(np.float32) * 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """[h, w] or [h, w, c] with c 1 (grey), 3 (RGB) or 4 (RGBA), of `to_bytes`, -> PNG.

    Raises:
      ValueError: another shape, or what `to_bytes` refuses.
    """
    array = to_bytes(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise ValueError(f"an image is [h, w] or [h, w, 1, 3 or 4], not {list(np.shape(image))}")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def gif(frames: np.ndarray, *, seconds: list[float]) -> bytes:
    """Frames [n, h, w, c], each of `png` with c 1 or 3, -> a GIF that begins again at its end.

    Args:
      seconds: [n], how long each frame is shown.
    Raises:
      ValueError: what `to_bytes` refuses, or not a number of seconds a frame.
    """
    array = to_bytes(frames)
    if len(array) != len(seconds) or not len(array):
        raise ValueError(f"{len(array)} frames with {len(seconds)} durations make no film")
    if array.shape[-1] == 1:
        array = array[..., 0]
    first, *rest = (Image.fromarray(frame) for frame in array)
    stream = io.BytesIO()
    first.save(
        stream,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=[round(1000 * each) for each in seconds],
        loop=0,
    )
    return stream.getvalue()


def data_uri(image: np.ndarray) -> str:
    """An image of `png` as the text that stands for it inside a page."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """[n, h, w, c] -> [n, factor h, factor w, c]; every pixel becomes a square."""
    return np.repeat(np.repeat(images, factor, axis=1), factor, axis=2)


def sheet(images: np.ndarray, *, gap: int, columns: int | None = None) -> np.ndarray:
    """Images row by row, with `gap` grey pixels between them.

    Args:
      images: [n, h, w, c] float in [0, 1].
      columns: images in a row; None: about as many across as down.
    Returns:
      [rows h + gaps, columns w + gaps, c] float32.
    Raises:
      ValueError: no image at all, or an array of another rank.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"a sheet is made of images [n, h, w, c], n >= 1, not {list(images.shape)}"
        )
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    page = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 0.5, np.float32)
    for index, image in enumerate(images):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        page[top : top + h, left : left + w] = image
    return page


def diverging(values: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    """Signed numbers as colours: red above zero, blue below, the fainter the nearer to zero.

    Faintness is transparency, so that zero looks like the page, light or dark.

    Args:
      values: [...] float.
      limit: the size of full colour, broadcast against values; where it is 0, nothing is drawn.
    Returns:
      [..., 4] uint8, RGBA.
    """
    values = np.asarray(values, np.float32)
    limit = np.broadcast_to(np.asarray(limit, np.float32), values.shape)
    size = np.abs(np.divide(values, limit, out=np.zeros_like(values), where=limit > 0))
    colours = np.where(
        (values < 0)[..., None], np.array(NEGATIVE, np.uint8), np.array(POSITIVE, np.uint8)
    )
    # The square root keeps small numbers visible beside the largest.
    alpha = to_bytes(np.sqrt(np.clip(size, 0, 1)))
    return np.concatenate([colours, alpha[..., None]], axis=-1)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """[h, w, c] of `to_bytes` -> uint8, by averaging to at most `side` pixels a side, if larger."""
    array = to_bytes(image)
    h, w, _ = array.shape
    if max(h, w) <= side:
        return array
    size = (max(1, w * side // max(h, w)), max(1, h * side // max(h, w)))
    channels = [
        Image.fromarray(array[:, :, channel]).resize(size, Image.Resampling.BOX)
        for channel in range(array.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
