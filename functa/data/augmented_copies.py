"""Augmented copies of the images of a source, as the stage encode makes them and the page shows them."""

import numpy as np
from ml_collections import ConfigDict

from functa.data.augmentation import augment
from functa.data.images import Batch, ImageSource


def read_copies(
    source: ImageSource,
    indices: np.ndarray,
    copies: np.ndarray,
    *,
    seed: int,
    flip: bool,
    crop: str,
    crop_padding: int,
    crop_min_area: float,
) -> Batch:
    """Copy copies[k] of example indices[k]; copy 0 is the image itself.

    With crop="resize" a part is cut out of the image as it is kept, not of what is left of a photograph once it has
    been cropped and resized to the images' shape.

    Args:
      indices, copies: [n] integers.
      seed, flip, crop, crop_padding, crop_min_area: see augment.
    Returns:
      What ImageSource.read tells, of n rows.
    """
    examples, places = np.unique(indices, return_inverse=True)
    augmented = np.flatnonzero(copies)
    if crop == "resize" and augmented.size:
        read, kept = source.read_whole(examples)
    else:
        read = source.read(examples)
        kept = list(read["image"])
    batch = {name: values[places] for name, values in read.items()}
    for k in augmented:
        batch["image"][k] = augment(
            kept[places[k]],
            shape=batch["image"].shape[1:3],
            seed=seed,
            example_id=int(batch["id"][k]),
            copy=int(copies[k]),
            flip=flip,
            crop=crop,
            crop_padding=crop_padding,
            crop_min_area=crop_min_area,
        )
    return batch


def read_records(source: ImageSource, split: str, rows: range, config: ConfigDict) -> Batch:
    """Images, labels, ids and copy numbers of records `rows` of a split of the functaset of a config: those of an
    example's copies are neighbours."""
    c = config.encode
    each = c.num_augmentations if split == "train" else 1
    examples, copies = np.divmod(np.arange(rows.start, rows.stop), each)
    batch = read_copies(
        source,
        examples,
        copies,
        seed=config.seed,
        flip=c.flip,
        crop=c.crop,
        crop_padding=c.crop_padding,
        crop_min_area=c.crop_min_area,
    )
    return {name: batch[name] for name in ("image", "label", "id")} | {"copy": copies}
