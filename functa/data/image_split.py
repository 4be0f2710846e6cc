"""A split of an image data set as a sequence of arrays."""

from typing import Any

import numpy as np

from functa.data.images import ImageSource


class ImageSplit:
    """Random access to the images of a split: `split[k]` uint8 [h, w, c], `split[:16]` [16, h, w, c]."""

    def __init__(self, source: ImageSource, name: str, image_shape: tuple[int, ...]):
        self.source, self._name, self._image_shape = source, name, image_shape

    def __len__(self) -> int:
        return self.source.num_examples

    def __repr__(self) -> str:
        h, w, c = self._image_shape
        return f"ImageSplit({self._name}: {len(self):,} images of {h}x{w}x{c})"

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Reads one image, or the images of a slice or an array of indices.

        Raises:
          IndexError: an index is out of range.
        """
        return self._read(index, "image")

    def labels(self, index: int | slice | np.ndarray = slice(None)) -> np.ndarray:
        """Classes of images: int32 [n], or a scalar for one index."""
        return self._read(index, "label")

    def _read(self, index: Any, name: str) -> np.ndarray:
        rows = np.arange(len(self))[index]
        values = self.source.read(np.atleast_1d(rows))[name]
        return values[0] if rows.ndim == 0 else values
