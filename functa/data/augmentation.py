"""Augmented copies of images, as the encode stage stores them.

A copy is a pure function of the seed, the id of the example and the number of the copy. So any process
can make any copy, and a shard that is made again has the same bytes.
"""

import math
from typing import Any

import numpy as np

from functa.data.image_arrays import crop_and_resize, resize_box
from functa.data.images import ImageSource
from functa.data.sources import Batch
from functa.runtime import rng


def read_copies(
    source: ImageSource, indices: np.ndarray, copies: np.ndarray, **settings: Any
) -> Batch:
    """Reads copy copies[k] of example indices[k]; copy 0 is the image itself.

    With crop="resize" a copy is cut out of the stored image, before that is cropped and resized to the
    shape of the source.

    Args:
      indices, copies: [n] integers.
      settings: seed, flip, crop, crop_padding and crop_min_area of `augment`.
    Returns:
      The arrays of ImageSource.read, [n, ...].
    """
    examples, positions = np.unique(indices, return_inverse=True)
    reads_originals = settings["crop"] == "resize" and np.any(copies)
    read: Any = source.read_originals if reads_originals else source.read
    batch = read(examples)
    originals = batch.pop("image")
    batch = {name: values[positions] for name, values in batch.items()}
    images = [
        augment(
            originals[position],
            shape=source.image_shape[:2],
            example_id=int(example_id),
            copy=int(copy),
            **settings,
        )
        for position, example_id, copy in zip(positions, batch["id"], copies, strict=True)
    ]
    return batch | {"image": np.stack(images)}


def augment(
    image: np.ndarray,
    *,
    shape: tuple[int, ...],
    seed: int,
    example_id: int,
    copy: int,
    flip: bool,
    crop: str,
    crop_padding: int,
    crop_min_area: float,
) -> np.ndarray:
    """Makes one copy of one image.

    Args:
      image: [H, W, c] uint8. With crop="none" and "pad", [h, w, c].
      shape: (h, w) of the copies.
      copy: number of the copy. Copy 0 is the image itself, cropped and resized if necessary.
      flip: mirror left-right with probability 1/2.
      crop: "none"; "pad": pad every side with `crop_padding` black pixels and cut out a random window
        of h x w pixels; "resize": cut out a random box and resize it to h x w.
      crop_min_area: smallest area of a box as a fraction of the image, in (0, 1]; crop="resize" only.
    Returns:
      [h, w, c] uint8.
    Source: "pad": He et al. 2016, section 4.2. "resize": Szegedy et al. 2015, section 6; `_crop_resize`
      has the deviation.
    """
    if copy == 0:
        return crop_and_resize(image, shape)
    random = np.random.default_rng(rng.stream_seed(seed, "augment", example_id, copy))
    # The number is drawn even if it is not used: crops are the same with and without flips.
    mirror = random.random() < 0.5
    if flip and mirror:
        image = image[:, ::-1]
    if crop == "pad":
        image = _crop_pad(image, random, crop_padding)
    elif crop == "resize":
        image = _crop_resize(image, random, crop_min_area, shape)
    return np.ascontiguousarray(image)


def _crop_pad(image: np.ndarray, random: np.random.Generator, padding: int) -> np.ndarray:
    h, w, _ = image.shape
    top, left = random.integers(0, 2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + h, left : left + w]


def _crop_resize(
    image: np.ndarray, random: np.random.Generator, min_area: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Cuts out a random box and resizes it with the bicubic filter.

    The area is uniform in [min_area, 1] of the image. The aspect ratio, relative to that of `shape`, is
    log-uniform in that part of [3/4, 4/3] for which the box fits into the image. If the image is so
    long that no such box fits, the nearest ratio that fits is taken. Deviation from the published code,
    which draws up to ten times and then gives up; also, boxes may start between pixels.
    """
    (height, width, _), (h, w) = image.shape, shape
    area = random.uniform(min_area, 1.0)
    log_ratio = math.log(width * h / (height * w))  # of the whole image, relative to `shape`
    margin = math.log(1 / area)
    fits, wanted = (log_ratio - margin, log_ratio + margin), (-math.log(4 / 3), math.log(4 / 3))
    low, high = (min(max(limit, fits[0]), fits[1]) for limit in wanted)
    ratio = math.exp(random.uniform(low, high))
    side = math.sqrt(area * height * width)
    # Rounding must not push the box over the border, which Pillow refuses.
    box_h = min(side * math.sqrt(h / w / ratio), height)
    box_w = min(side * math.sqrt(w / h * ratio), width)
    top, left = random.uniform(0, height - box_h), random.uniform(0, width - box_w)
    box = (left, top, min(left + box_w, width), min(top + box_h, height))
    return resize_box(image, shape, box)
