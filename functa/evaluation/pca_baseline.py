"""PCA of cells, the linear baseline of a field: the same cells, as many floats per cell."""

import functools
import math
from typing import NamedTuple

import numpy as np

from functa.fields.pixels import to_float

MAX_IMAGES = 20_000
MAX_VALUES = 1 << 28  # 1,365 images of 256x256x3 already have a million cells of 8x8
_BLOCK_VALUES = 1 << 23  # converted to float32 at a time


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


class Moments(NamedTuple):
    """Number of rows, their mean [k] and the sum of their centered outer products [k, k], float64."""

    rows: int
    mean: np.ndarray
    scatter: np.ndarray

    def add(self, other: "Moments") -> "Moments":
        """Moments of the rows of both. Source: Chan, Golub and LeVeque 1983."""
        count = self.rows + other.rows
        offset, fraction = other.mean - self.mean, other.rows / count
        scatter = self.scatter + other.scatter + np.outer(offset, offset) * (self.rows * fraction)
        return Moments(count, self.mean + offset * fraction, scatter)


def moments(rows: np.ndarray) -> Moments:
    """Moments of rows [n, k] float32."""
    mean = rows.mean(0, dtype=np.float64)
    centered = rows - mean.astype(rows.dtype)
    return Moments(len(rows), mean, (centered.T @ centered).astype(np.float64))


def image_blocks(image_shape: tuple[int, int, int], count: int) -> list[range]:
    """Rows of `count` images in blocks whose moments are computed at a time."""
    size = max(1, _BLOCK_VALUES // math.prod(image_shape))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def cell_moments(images: np.ndarray, grid: tuple[int, int]) -> Moments:
    """Moments of the cells of images [n, h, w, c] uint8."""
    cells = image_cells(to_float(images), grid)
    return moments(cells.reshape(-1, cells.shape[-1]))


def make_cell_pca(total: Moments, *, grid: tuple[int, int], components: int) -> CellPca:
    """The PCA of cells with these moments; at most as many components as values of a cell."""
    return CellPca(grid, *principal_components(total, components))


def fit_cell_pca(images: np.ndarray, *, grid: tuple[int, int], components: int) -> CellPca:
    """Fits the PCA of the cells of images [n, h, w, c] uint8; see `make_cell_pca`."""
    blocks = image_blocks(images.shape[1:], len(images))
    parts = (cell_moments(images[rows.start : rows.stop], grid) for rows in blocks)
    return make_cell_pca(functools.reduce(Moments.add, parts), grid=grid, components=components)


def image_cells(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[b, h, w, c] -> [b, i * j, p * q * c]: the pixels of each cell of an i x j grid."""
    b, h, w, c = images.shape
    i, j = grid
    cells = images.reshape(b, i, h // i, j, w // j, c).swapaxes(2, 3)
    return cells.reshape(b, i * j, -1)


def principal_components(total: Moments, components: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean [k], basis [k, min(components, k)]), float64."""
    _, vectors = np.linalg.eigh(total.scatter)
    return total.mean, vectors[:, ::-1][:, :components]
