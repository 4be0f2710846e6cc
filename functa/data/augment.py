"""Augmented copies of an image, each a pure function of (seed, example id, copy number).

Any process can so make any copy at any time, and a shard of a functaset that is made again holds
the same bytes.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from functa import rng


def augment(
    images_uint8: np.ndarray,
    *,
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
      images_uint8: [h, w, c] uint8, one image.
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
        images_uint8 = _crop_resize(images_uint8, random, crop_min_area)
    return np.ascontiguousarray(images_uint8)


def read_copies(
    read: Callable[[np.ndarray], dict[str, np.ndarray]],
    rows: range,
    *,
    num_copies: int,
    seed: int,
    flip: bool,
    crop: str,
    crop_padding: int,
    crop_min_area: float,
) -> dict[str, np.ndarray]:
    """Images with so many copies each, counted as example * num_copies + copy; see `augment`.

    Args:
      read: of an ImageSource: examples [k] -> image, label, id.
      rows: of the copies that are wanted; not empty.
    Returns:
      image [k, h, w, c] uint8, label [k], id [k], copy [k].
    """
    examples, copies = np.divmod(np.arange(rows.start, rows.stop), num_copies)
    batch = read(np.arange(examples[0], examples[-1] + 1))
    batch = {name: batch[name][examples - examples[0]] for name in ("image", "label", "id")}
    for k in np.flatnonzero(copies):
        batch["image"][k] = augment(
            batch["image"][k],
            seed=seed,
            example_id=int(batch["id"][k]),
            copy=int(copies[k]),
            flip=flip,
            crop=crop,
            crop_padding=crop_padding,
            crop_min_area=crop_min_area,
        )
    return batch | {"copy": copies}


def _crop_pad(image: np.ndarray, random: np.random.Generator, padding: int) -> np.ndarray:
    h, w, _ = image.shape
    top, left = random.integers(0, 2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + h, left : left + w]


def _crop_resize(image: np.ndarray, random: np.random.Generator, min_area: float) -> np.ndarray:
    """Part of area a ~ U(min_area, 1), aspect ratio log-uniform in [3/4, 4/3], resized with the
    bicubic filter.

    The ratio is relative to the image's own and is drawn from the part of that interval for which
    the box lies inside the image, where the published code draws up to ten times and then gives
    up; boxes may start between pixels.
    """
    h, w, c = image.shape
    area = random.uniform(min_area, 1.0)
    limit = min(math.log(4 / 3), math.log(1 / area))
    ratio = math.exp(random.uniform(-limit, limit))
    box_h, box_w = h * math.sqrt(area / ratio), w * math.sqrt(area * ratio)
    # min: rounding must not push the box over the border, which Pillow refuses.
    box_h, box_w = min(box_h, h), min(box_w, w)
    top, left = random.uniform(0, h - box_h), random.uniform(0, w - box_w)
    box = (left, top, min(left + box_w, w), min(top + box_h, h))
    planes = [
        np.asarray(Image.fromarray(image[..., k]).resize((w, h), Image.Resampling.BICUBIC, box))
        for k in range(c)
    ]
    return np.stack(planes, axis=-1)
