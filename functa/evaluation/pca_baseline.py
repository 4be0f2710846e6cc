"""PCA of cells, the linear baseline of a field: the same cells, as many floats per cell."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from functa.fields.pixels import to_float

MAX_IMAGES = 20_000
MAX_VALUES = 1 << 28  # 1,365 images of 256x256x3 already have a million cells of 8x8
_BLOCK_VALUES = 1 << 26  # converted to float32 at a time


def num_training_images(image_shape: tuple[int, int, int], available: int) -> int:
    """Number of training images for the PCA: 20,000, or fewer large images."""
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
        return self._centered(images) @ self.basis.astype(np.float32)

    def mse(self, images: np.ndarray) -> np.ndarray:
        """Mean squared error of the projected images [n, h, w, c] uint8: [n] float64."""
        # The basis is orthonormal, so the error is the energy that the coefficients lack.
        energy, projected = (
            np.square(values, dtype=np.float64).sum(-1)
            for values in (self._centered(images), self.coefficients(images))
        )
        return np.maximum(energy - projected, 0).mean(-1) / len(self.mean)

    def _centered(self, images: np.ndarray) -> np.ndarray:
        return image_cells(to_float(images), self.grid) - self.mean.astype(np.float32)


def fit_cell_pca(images: np.ndarray, *, grid: tuple[int, int], components: int) -> CellPca:
    """Fits the PCA of the cells of images [n, h, w, c] uint8.

    Args:
      components: columns of the basis, limited to the number of values of a cell.
    """
    size = max(1, _BLOCK_VALUES // images[0].size)
    blocks = (images[start : start + size] for start in range(0, len(images), size))
    cells = (image_cells(to_float(block), grid) for block in blocks)
    return CellPca(grid, *fit_pca((c.reshape(-1, c.shape[-1]) for c in cells), components))


def image_cells(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[b, h, w, c] -> [b, i * j, p * q * c]: the pixels of each cell of an i x j grid."""
    b, h, w, c = images.shape
    i, j = grid
    cells = images.reshape(b, i, h // i, j, w // j, c).swapaxes(2, 3)
    return cells.reshape(b, i * j, -1)


def fit_pca(blocks: Iterable[np.ndarray], components: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of rows, given as blocks [n, k] float32.

    Returns:
      (mean [k], basis [k, min(components, k)]), float64.
    Source: Chan, Golub and LeVeque 1983, for the sums of squares of a whole from those of its parts.
    """
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for rows in blocks:
        block_mean = rows.mean(0, dtype=np.float64)
        centered = rows - block_mean.astype(rows.dtype)
        offset, fraction = block_mean - mean, len(rows) / (count + len(rows))
        scatter = scatter + (centered.T @ centered).astype(np.float64)
        scatter = scatter + np.outer(offset, offset) * (count * fraction)
        mean = mean + offset * fraction
        count += len(rows)
    _, vectors = np.linalg.eigh(scatter)
    return mean, vectors[:, ::-1][:, :components]
