"""PCA of cells, the linear baseline of a field: the same cells, as many floats per cell."""

import math
from typing import NamedTuple

import numpy as np

from functa.fields import psnr

MAX_IMAGES = 20_000
MAX_VALUES = 1 << 28  # 1,365 images of 256x256x3 already have a million cells of 8x8
_BLOCK_VALUES = 1 << 26  # converted to float32 at a time


def num_training_images(image_shape: tuple[int, int, int], available: int) -> int:
    """Number of training images that the PCA needs: 20,000, or fewer of large images."""
    return min(MAX_IMAGES, max(1, MAX_VALUES // math.prod(image_shape)), available)


class CellPca(NamedTuple):
    """PCA of the cells of an i x j grid.

    Attributes:
      grid: (i, j).
      mean: [k] float64, k = values of a cell; basis: [k, d] float64, orthonormal columns.
    """

    grid: tuple[int, int]
    mean: np.ndarray
    basis: np.ndarray

    def truncate(self, components: int) -> "CellPca":
        """The PCA with the first components only."""
        return self._replace(basis=self.basis[:, :components])

    def coefficients(self, images: np.ndarray) -> np.ndarray:
        """Images [n, h, w, c] uint8 -> [n, i * j, d] float32."""
        centered = psnr.image_cells(_to_float(images), self.grid) - self.mean.astype(np.float32)
        return centered @ self.basis.astype(np.float32)

    def mse(self, images: np.ndarray) -> np.ndarray:
        """Mean squared error of the projected images [n, h, w, c] uint8: [n] float64."""
        return psnr.pca_mse(_to_float(images), self.grid, self.mean, self.basis)


def fit_cell_pca(images: np.ndarray, *, grid: tuple[int, int], components: int) -> CellPca:
    """Fits the PCA of the cells of images [n, h, w, c] uint8.

    Args:
      components: columns of the basis, limited to the number of values of a cell.
    """
    size = max(1, _BLOCK_VALUES // images[0].size)
    blocks = (images[start : start + size] for start in range(0, len(images), size))
    cells = (psnr.image_cells(_to_float(block), grid) for block in blocks)
    mean, basis = psnr.fit_pca_in_blocks((c.reshape(-1, c.shape[-1]) for c in cells), components)
    return CellPca(grid, mean, basis)


def _to_float(images: np.ndarray) -> np.ndarray:
    return images / np.float32(255)
