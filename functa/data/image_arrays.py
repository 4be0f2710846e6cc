"""Images, latents and labels that come as arrays from a program: checks, conversion, resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

RESIZE = ("crop", "stretch")
Box = tuple[float, float, float, float]
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
    floats = to_unit_range(batch)
    if batch.shape[1:3] != image_shape[:2]:
        if resize is None:
            h, w, _ = image_shape
            raise ValueError(
                f"the images have {batch.shape[1]}x{batch.shape[2]} pixels, but the field encodes {h}x{w}: "
                "resize them, or choose resize='crop' or resize='stretch'"
            )
        if not min(batch.shape[1:3]):
            raise ValueError(
                f"images of {batch.shape[1]}x{batch.shape[2]} pixels cannot be resized"
            )
        resized = [resize_image(image, image_shape[:2], resize) for image in floats]
        floats = np.reshape(resized, (-1, *image_shape)).astype(np.float32).clip(0, 1)
    return floats, is_single


def to_latent_batch(latents: Any, *, latent_shape: tuple[int, ...]) -> tuple[np.ndarray, bool]:
    """Converts the latents of one image, or a batch, to [n, i, j, d] float32; likewise.

    Raises:
      ValueError: a wrong shape or dtype.
    """
    latents = np.asarray(latents)
    is_single = latents.shape == latent_shape
    batch = latents[None] if is_single else latents
    if batch.shape[1:] != latent_shape or not np.issubdtype(batch.dtype, np.floating):
        expected = ", ".join(map(str, latent_shape))
        given = f"{latents.dtype}{list(latents.shape)}"
        raise ValueError(f"latents must be float [n, {expected}] or [{expected}], not {given}")
    return batch.astype(np.float32), is_single


def to_labels(labels: Any, count: int, *, classes: int) -> np.ndarray:
    """Labels [count] int32 of samples.

    Args:
      labels: one class, or `count` classes, in [0, classes], where `classes` stands for an unknown class;
        None: all classes in turn.
    Raises:
      ValueError: `count` is not an integer of at least 1, or wrong labels.
    """
    if np.ndim(count) or np.asarray(count).dtype.kind not in "iu" or count < 1:
        raise ValueError(f"count={count} must be an integer of at least 1")
    if labels is None:
        return np.arange(count, dtype=np.int32) % classes
    chosen = np.asarray(labels)
    if chosen.shape not in ((), (count,)) or chosen.dtype.kind not in "iu":
        raise ValueError(f"labels must be one integer or {count} integers, not {labels}")
    if chosen.min() < 0 or chosen.max() > classes:
        raise ValueError(f"labels={labels} must lie in [0, {classes}]")
    return np.broadcast_to(chosen, count).astype(np.int32)


def _is_single(array: np.ndarray, channels: int) -> bool:
    """Whether an array is one image: [h, w, c], or [h, w] of gray images."""
    if array.ndim == 2:
        return True
    return array.ndim == 3 and (channels > 1 or array.shape[2] == 1)


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1].

    Raises:
      TypeError, ValueError: see `to_batch`.
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"images must be uint8 in [0, 255] or float in [0, 1], not {images.dtype}")
    least, greatest = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not min(least, 1 - greatest) >= -_MAX_ERROR:  # also if a value is NaN
        raise ValueError(
            f"float images must lie in [0, 1], but their values are {least:g} to {greatest:g}"
        )
    return images.astype(np.float32).clip(0, 1)


def resize_image(image: np.ndarray, shape: Sequence[int], resize: str) -> np.ndarray:
    """Resizes [H, W, c] uint8 or float32 to [h, w, c], of the same dtype; see `to_batch`."""
    if resize == "crop":
        return crop_and_resize(image, shape)
    height, width, _ = image.shape
    return resize_box(image, shape, (0, 0, width, height))


def crop_and_resize(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resizes the largest centered part of an image that has the aspect ratio of `shape`.

    This equals resizing the short side and then cropping.

    Args:
      image: [H, W, c] uint8 or float32.
      shape: (h, w).
    Returns:
      [h, w, c] of the same dtype.
    """
    (height, width, _), (h, w) = image.shape, shape
    if (height, width) == (h, w):
        return image
    scale = min(width / w, height / h)
    # Rounding must not push the box over the border, which Pillow refuses.
    left, top = max(0.0, (width - w * scale) / 2), max(0.0, (height - h * scale) / 2)
    return resize_box(image, shape, (left, top, width - left, height - top))


def resize_box(image: np.ndarray, shape: Sequence[int], box: Box) -> np.ndarray:
    """Resizes a part of an image with Pillow's antialiased bicubic filter.

    Args:
      image: [H, W, c] uint8 or float32.
      shape: (h, w).
      box: left, top, right, bottom in pixels; may lie between pixels.
    Returns:
      [h, w, c] of the same dtype.
    """
    h, w = shape
    # Pillow has no image of three floats.
    is_rgb = image.dtype == np.uint8 and image.shape[2] == 3
    bands = [image] if is_rgb else np.moveaxis(image, 2, 0)
    resized = [
        Image.fromarray(band).resize((w, h), Image.Resampling.BICUBIC, box) for band in bands
    ]
    return np.concatenate([np.asarray(band).reshape(h, w, -1) for band in resized], axis=2)
