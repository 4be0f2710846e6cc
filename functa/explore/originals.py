"""The images that a functaset was made of, found again by their ids."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from functa.data import images
from functa.data.augmentation import read_copies

_AUGMENTATION = ("flip", "crop", "crop_padding", "crop_min_area")  # keys of config.encode


class Originals:
    """The data set of a run's config, or why it cannot be read.

    Attributes:
      missing: "" where the data set is there, else what is wrong with it.
      num_test: images of its test split; 0 where it is missing.
    """

    def __init__(self, config: ConfigDict, *, data_dir: str | None):
        """data_dir: where the images lie now; None: where the config says."""
        self._config, self.missing, self.num_test = config, "", 0
        # A few images at a time: not worth a split in memory.
        data: dict[str, Any] = {**config.data, "cache": "none"}
        if data_dir is not None:
            data["data_dir"] = data_dir
        try:
            self._splits = images.open_splits(**data)
        except (ValueError, OSError) as error:
            self.missing = f"the images are not there: {error}"
            return
        self.num_test = self._splits["test"].num_examples
        self._first = {
            split: int(source.read(np.arange(1))["id"][0]) if source.num_examples else 0
            for split, source in self._splits.items()
        }

    def read(
        self, split: str, *, ids: np.ndarray, copies: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """What was encoded as these records, augmented as they were: [n, h, w, c] uint8.

        Args:
          ids, copies, labels: [n] integers, of records of a functaset.
        Raises:
          ValueError: there are no images, one of them is not there, or it is of another class.
        """
        if self.missing:
            raise ValueError(self.missing)
        source, rows = self._splits[split], ids - self._first[split]
        outside = ids[(rows < 0) | (rows >= source.num_examples)]
        if outside.size:
            raise ValueError(f"the images of the split {split} have no id {outside[0]}")
        settings = {key: self._config.encode[key] for key in _AUGMENTATION}
        batch = read_copies(source, rows, copies, seed=self._config.seed, **settings)
        other = np.flatnonzero(batch["label"] != labels)
        if other.size:
            k = other[0]
            raise ValueError(
                f"image {ids[k]} of the split {split} is of class {batch['label'][k]}, its record of class "
                f"{labels[k]}: these are not the images that were encoded"
            )
        return batch["image"]

    def test_image(self, row: int) -> tuple[np.ndarray, int]:
        """Image [h, w, c] uint8 and class of the test image `row`.

        Raises:
          ValueError: it is not there.
        """
        if self.missing:
            raise ValueError(self.missing)
        if not 0 <= row < self.num_test:
            raise ValueError(f"the test images are 0 to {self.num_test - 1}, not {row}")
        batch = self._splits["test"].read(np.array([row]))
        return batch["image"][0], int(batch["label"][0])
