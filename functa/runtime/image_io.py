"""Images as PNG, GIF and data URIs; contact sheets; color maps for signed values."""

import base64
import io
import math

import numpy as np
from PIL import Image

NEGATIVE = (33, 102, 214)  # blue
POSITIVE = (214, 71, 33)  # red


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Floating-point values in [0, 1], clipped and rounded to uint8 in 0..255; uint8 unchanged.

    Raises:
      ValueError: values that are not finite, or integers of another type.
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image must be uint8 or floating point, not {image.dtype}")
    invalid = int(np.count_nonzero(~np.isfinite(image)))
    if invalid:
        raise ValueError(f"{invalid} of the {image.size} values of an image are not finite")
    return np.rint(np.clip(image, 0, 1).astype(np.float32) * 255).astype(np.uint8)


def _to_pil(image: np.ndarray) -> Image.Image:
    array = to_uint8(image)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def png(image: np.ndarray) -> bytes:
    """PNG of an image [h, w] or [h, w, c] with c = 1 (gray), 3 (RGB) or 4 (RGBA); see `to_uint8`.

    Raises:
      ValueError: another shape, or invalid values.
    """
    shape = np.shape(image)
    if len(shape) != 2 and not (len(shape) == 3 and shape[-1] in (1, 3, 4)):
        raise ValueError(f"an image must be [h, w] or [h, w, 1, 3 or 4], not {list(shape)}")
    stream = io.BytesIO()
    _to_pil(image).save(stream, format="PNG")
    return stream.getvalue()


def gif(frames: np.ndarray, *, seconds: list[float]) -> bytes:
    """GIF of frames [n, h, w, 1 or 3] that repeats forever; see `to_uint8`.

    Args:
      seconds: [n], display time of each frame.
    Raises:
      ValueError: no frames, another number of display times, or invalid values.
    """
    if len(frames) != len(seconds) or not len(frames):
        raise ValueError(
            f"a GIF needs one display time per frame: {len(seconds)} for {len(frames)}"
        )
    first, *rest = map(_to_pil, frames)
    stream = io.BytesIO()
    first.save(
        stream,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=[round(1000 * duration) for duration in seconds],
        loop=0,
    )
    return stream.getvalue()


def data_uri(image: np.ndarray) -> str:
    """The PNG of an image as a data URI for HTML; see `png`."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Nearest-neighbor upsampling by an integer: [n, h, w, c] -> [n, factor h, factor w, c]."""
    return np.repeat(np.repeat(images, factor, axis=1), factor, axis=2)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Area downsampling of [h, w, 1 or 3] to at most `side` pixels per side; uint8, see `to_uint8`."""
    array = to_uint8(image)
    h, w, c = array.shape
    if max(h, w) <= side:
        return array
    size = (max(1, w * side // max(h, w)), max(1, h * side // max(h, w)))
    resized = _to_pil(array).resize(size, Image.Resampling.BOX)
    return np.asarray(resized).reshape(size[1], size[0], c)


def sheet(images: np.ndarray, *, gap: int, columns: int | None = None) -> np.ndarray:
    """Contact sheet: images row by row with `gap` gray pixels between them.

    Args:
      images: [n, h, w, c] float in [0, 1].
      columns: images per row; None: about as many as rows.
    Returns:
      [rows h + gaps, columns w + gaps, c] float32.
    Raises:
      ValueError: no image, or an array of another rank.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a sheet needs images [n, h, w, c], n >= 1, not {list(images.shape)}")
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    page = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 0.5, np.float32)
    for index, image in enumerate(images):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        page[top : top + h, left : left + w] = image
    return page


def diverging(values: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    """Diverging color map of signed values: red above zero, blue below, transparent at zero.

    Transparency shows the background of the page, light or dark, at zero. The opacity is
    sqrt(|value| / limit), which keeps small values visible.

    Args:
      values: [...] float.
      limit: the magnitude of full opacity, broadcast against values; 0: fully transparent.
    Returns:
      [..., 4] uint8, RGBA.
    """
    values = np.asarray(values, np.float32)
    limit = np.broadcast_to(np.asarray(limit, np.float32), values.shape)
    magnitude = np.abs(np.divide(values, limit, out=np.zeros_like(values), where=limit > 0))
    colors = np.where(
        (values < 0)[..., None], np.array(NEGATIVE, np.uint8), np.array(POSITIVE, np.uint8)
    )
    alpha = to_uint8(np.sqrt(np.clip(magnitude, 0, 1)))
    return np.concatenate([colors, alpha[..., None]], axis=-1)
