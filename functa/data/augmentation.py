"""Augmented copies of an image, each a pure function of (seed, example id, copy number).

Any process can so make any copy at any time, and a shard of a functaset that is made again holds
the same bytes.
"""

import math

import numpy as np
from PIL import Image

from functa.runtime import rng


def augment(
    images_uint8: np.ndarray,
    *,
    shape: tuple[int, int],
    seed: int,
    example_id: int,
    copy: int,
    flip: bool,
    crop: str,
    crop_padding: int,
    crop_min_area: float,
) -> np.ndarray:
    """Copy number `copy` of one image; copy 0 is the image itself.

    Args:
      images_uint8: [H, W, c] uint8, one image; of another shape than `shape` with crop="resize" only.
      shape: (h, w) of the copies.
      example_id: the example's id in its data set.
      flip: mirror left-right with probability one half.
      crop: "none"; "pad": pad every side with `crop_padding` black pixels and cut out h x w at
        random (He et al. 2016, section 4.2, "4 pixels are padded on each side, and a 32x32 crop is
        randomly sampled"); "resize": cut out a random part and resize it to h x w (Szegedy et al.
        2015, section 6; see `_crop_resize` for the deviation).
      crop_min_area: smallest part as a fraction of the image's area, in (0, 1]; crop="resize".
    Returns:
      [h, w, c] uint8.
    Raises:
      ValueError: not one uint8 image, an unknown crop, or a number out of range.
    """
    if images_uint8.ndim != 3 or images_uint8.dtype != np.uint8:
        raise ValueError(
            f"expected one image [h, w, c] uint8, not {images_uint8.shape} {images_uint8.dtype}"
        )
    if crop not in ("none", "pad", "resize"):
        raise ValueError(f"unknown crop {crop!r}; known are none, pad, resize")
    if images_uint8.shape[:2] != tuple(shape) and (crop != "resize" or copy == 0):
        raise ValueError(
            f"an image of {images_uint8.shape[:2]} pixels has no copy {copy} of {tuple(shape)} with crop={crop}"
        )
    if crop_padding < 0 or not 0 < crop_min_area <= 1:
        raise ValueError(
            f"crop_padding must be >= 0 and crop_min_area in (0, 1], not {crop_padding}, "
            f"{crop_min_area}"
        )
    if copy == 0:
        return images_uint8
    random = np.random.default_rng(rng.stream_seed(seed, "augment", int(example_id), int(copy)))
    # One draw for the flip whether or not it is used: the crops are then the same with and without
    # flips.
    mirrored = random.random() < 0.5
    if flip and mirrored:
        images_uint8 = images_uint8[:, ::-1]
    if crop == "pad":
        images_uint8 = _crop_pad(images_uint8, random, crop_padding)
    elif crop == "resize":
        images_uint8 = _crop_resize(images_uint8, random, crop_min_area, shape)
    return np.ascontiguousarray(images_uint8)


def _crop_pad(image: np.ndarray, random: np.random.Generator, padding: int) -> np.ndarray:
    h, w, _ = image.shape
    top, left = random.integers(0, 2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + h, left : left + w]


def _crop_resize(
    image: np.ndarray, random: np.random.Generator, min_area: float, shape: tuple[int, int]
) -> np.ndarray:
    """Part of area a ~ U(min_area, 1), aspect ratio log-uniform in [3/4, 4/3], resized with the
    bicubic filter.

    The ratio is relative to that of `shape` and is drawn from the part of that interval for which
    the box lies inside the image, where the published code draws up to ten times and then gives
    up; boxes may start between pixels. Where an image is so long that no such box of that area lies
    in it, the nearest ratio is taken that does.
    """
    (height, width, c), (h, w) = image.shape, shape
    area = random.uniform(min_area, 1.0)
    longer = math.log(
        width * h / (height * w)
    )  # how much wider the image is than the copy, by its ratio
    spare = math.log(1 / area)
    inside, wanted = (longer - spare, longer + spare), (-math.log(4 / 3), math.log(4 / 3))
    low, high = (min(max(limit, inside[0]), inside[1]) for limit in wanted)
    ratio = math.exp(random.uniform(low, high))
    side = math.sqrt(area * height * width)
    # min: rounding must not push the box over the border, which Pillow refuses.
    box_h = min(side * math.sqrt(h / w / ratio), height)
    box_w = min(side * math.sqrt(w / h * ratio), width)
    top, left = random.uniform(0, height - box_h), random.uniform(0, width - box_w)
    box = (left, top, min(left + box_w, width), min(top + box_h, height))
    planes = [
        np.asarray(Image.fromarray(image[..., k]).resize((w, h), Image.Resampling.BICUBIC, box))
        for k in range(c)
    ]
    return np.stack(planes, axis=-1)
