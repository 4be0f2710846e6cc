"""The images that a functaset was encoded from, found by their ids."""

import numpy as np
from ml_collections import ConfigDict

from functa.data import images
from functa.data.augmentation import read_copies
from functa.runtime.errors import UserError

_AUGMENTATION = ("flip", "crop", "crop_padding", "crop_min_area")  # keys of config.encode


class Originals:
    """Random access to the images of a run's data set."""

    def __init__(self, config: ConfigDict, *, data_dir: str | None):
        """Opens the data set.

        Args:
          data_dir: replaces config.data.data_dir.
        Raises:
          ValueError, OSError: the data set cannot be opened.
        """
        # The page shows a few images at a time, so no split is cached.
        data = {**config.data, "cache": "none"} | ({"data_dir": data_dir} if data_dir else {})
        self._config, self._splits = config, images.open_splits(**data)

    def read(self, split: str, records: dict[str, np.ndarray]) -> np.ndarray:
        """Images [n, h, w, c] uint8 of n records, augmented as they were for encoding.

        Args:
          records: integers [n] "id", "copy" and "label" of records of a functaset.
        Raises:
          UserError: an image does not exist, or its class is not that of the record.
        """
        source, ids = self._splits[split], records["id"]
        rows = ids - source.read(np.arange(1))["id"]
        if np.any(missing := (rows < 0) | (rows >= source.num_examples)):
            raise UserError(f"the split {split} of the images has no id {ids[missing][0]}")
        settings = {key: self._config.encode[key] for key in _AUGMENTATION}
        batch = read_copies(source, rows, records["copy"], seed=self._config.seed, **settings)
        if np.any(different := batch["label"] != records["label"]):
            raise UserError(
                f"image {ids[different][0]} of the split {split} and its record have different "
                "classes: the functaset was encoded from other images"
            )
        return batch["image"]
