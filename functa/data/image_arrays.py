"""Images that come as arrays from a program: checks, conversion to float32, and resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

RESIZE = ("crop", "stretch")
_MAX_ERROR = 1e-3  # by which float images may leave [0, 1], for example after a bicubic filter


def to_batch(
    images: Any, *, image_shape: tuple[int, ...], resize: str | None
) -> tuple[np.ndarray, bool]:
    """Converts one image or a batch of images to what a field encodes.

    Args:
      images: [n, h, w, c] or [h, w, c], uint8 in [0, 255] or float in [0, 1]; the channel axis of gray
        images may be missing.
      image_shape: (h, w, c) that the field encodes.
      resize: for images of another size; None refuses them, "crop" cuts out the largest centered part
        of the aspect ratio w : h and resizes it, "stretch" resizes the whole image. Pillow's
        antialiased bicubic filter.
    Returns:
      Images [n, h, w, c] float32 in [0, 1], and whether `images` was a single image.
    Raises:
      TypeError: the dtype is neither uint8 nor floating.
      ValueError: a wrong shape, a value outside [0, 1], or an unknown `resize`.
    """
    array = np.asarray(images)
    is_single = _is_single(array, image_shape[2])
    batch = array[None] if is_single else array
    if batch.ndim == 3:
        batch = batch[..., None]
    if batch.ndim != 4 or batch.shape[3] != image_shape[2]:
        expected = ", ".join(map(str, image_shape))
        raise ValueError(f"images must be [n, {expected}] or [{expected}], not {list(array.shape)}")
    if resize is not None and resize not in RESIZE:
        raise ValueError(f"resize={resize!r} must be None, {' or '.join(map(repr, RESIZE))}")
    floats = _to_float(batch)
    if batch.shape[1:3] != image_shape[:2]:
        if resize is None:
            h, w, _ = image_shape
            raise ValueError(
                f"the images have {batch.shape[1]}x{batch.shape[2]} pixels, but the field encodes {h}x{w}: "
                "resize them, or choose resize='crop' or resize='stretch'"
            )
        floats = np.stack([_resize_floats(image, image_shape, resize) for image in floats])
    return floats, is_single


def _is_single(array: np.ndarray, channels: int) -> bool:
    """Whether an array is one image: [h, w, c], or [h, w] of gray images."""
    if array.ndim == 2:
        return True
    return array.ndim == 3 and (channels > 1 or array.shape[2] == 1)


def _to_float(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"images must be uint8 in [0, 255] or float in [0, 1], not {images.dtype}")
    least, greatest = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if min(least, 1 - greatest) < -_MAX_ERROR:
        raise ValueError(
            f"float images must lie in [0, 1], but their values are {least:g} to {greatest:g}"
        )
    return images.astype(np.float32).clip(0, 1)


def resize_image(image: Image.Image, image_shape: Sequence[int], resize: str) -> np.ndarray:
    """Resizes a Pillow image to [h, w, c], in its dtype; see `to_batch`."""
    h, w, c = image_shape
    width, height = image.size
    scale = min(width / w, height / h)
    left, top = ((width - w * scale) / 2, (height - h * scale) / 2) if resize == "crop" else (0, 0)
    box = (max(0, left), max(0, top), width - max(0, left), height - max(0, top))
    if image.size != (w, h):
        image = image.resize((w, h), Image.Resampling.BICUBIC, box)
    return np.asarray(image).reshape(h, w, c)


def _resize_floats(image: np.ndarray, image_shape: tuple[int, ...], resize: str) -> np.ndarray:
    """Resizes [h, w, c] float32, channel by channel: Pillow has no image of three floats."""
    shape = (*image_shape[:2], 1)
    channels = [
        resize_image(Image.fromarray(channel), shape, resize)
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.concatenate(channels, axis=2).clip(0, 1)
