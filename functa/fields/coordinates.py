"""Pixel coordinates, their features, and interpolation between cells.

Convention: coordinates are in [0, 1]^2, row first, at pixel centers. Pixel r of h rows is at
(r + 0.5) / h. Regular grids are separable, so most functions work on one axis.
"""

import numpy as np

COORDINATES = ("local", "binary", "global", "periodic")


def pixel_centers(size: int) -> np.ndarray:
    """Centers of `size` pixels on one axis: [size] float32 in (0, 1)."""
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def nearest_index(points: np.ndarray, cells: int) -> np.ndarray:
    """Index of the cell that contains each point: [n] int32 in [0, cells)."""
    return np.clip(np.floor(points * cells), 0, cells - 1).astype(np.int32)


def interpolation_matrix(points: np.ndarray, cells: int) -> np.ndarray:
    """Matrix of linear interpolation between cell centers on one axis, constant beyond the border.

    Args:
      points: [n] float32 in [0, 1].
      cells: number of cells on the axis; the center of cell a is at (a + 0.5) / cells.
    Returns:
      [n, cells] float32 whose rows sum to one: values at points = matrix @ values of cells.
    """
    position = np.clip(points.astype(np.float64) * cells - 0.5, 0, cells - 1)
    left = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    weight = position - left
    matrix = np.zeros((len(points), cells))
    rows = np.arange(len(points))
    matrix[rows, left] += 1 - weight
    matrix[rows, np.minimum(left + 1, cells - 1)] += weight
    return matrix.astype(np.float32)


def orthonormalizer(points: np.ndarray, cells: int, *, parts: int) -> np.ndarray:
    """Inverse square root of the Gram matrix of linear interpolation.

    Interpolation blurs. At four pixels per cell, a pattern that alternates from cell to cell keeps
    0.56 of its amplitude on one axis (0.31 in the Gram matrix); a constant keeps all of it.

    Args:
      points: [n] float32, pixel centers, at least one in each part.
      cells: number of cells on the axis.
      parts: sub-cells per cell. Interpolation is between their centers; all sub-cells of a cell
        are assumed to have the same value.
    Returns:
      [cells, cells] float32, symmetric, eigenvalues in [1, 2]: Q such that Q A^T A Q is n / cells
      times the identity, where A [n, cells] maps values of cells to values at points.
    """
    matrix = interpolation_matrix(points, cells * parts).astype(np.float64)
    matrix = matrix.reshape(len(points), cells, parts).sum(axis=2)
    values, vectors = np.linalg.eigh(matrix.T @ matrix * (cells / len(points)))
    return (vectors / np.sqrt(values) @ vectors.T).astype(np.float32)


def axis_features(kind: str, points: np.ndarray, *, cells: int, pixels: int) -> np.ndarray:
    """Input features of the field for positions on one axis.

    Args:
      kind: "global": the position in [0, 1]. "local": the position inside the cell, in [0, 1].
        "binary": the bits of the pixel index in the *training* image, most significant first, in
        {0, 1}; they are constant inside such a pixel, so decoding at a higher resolution repeats
        pixels. "periodic": cosine and sine of the position inside the cell, one pair per octave
        down to the pixel; continuous across cells.
      points: [n] float32 in [0, 1].
      cells: cells of the latent grid on the axis.
      pixels: pixels of the training images on the axis.
    Returns:
      [n, f] float32.
    Raises:
      ValueError: `kind` is unknown.
    """
    if kind == "global":
        return points[:, None]
    if kind == "local":
        return (points * cells - nearest_index(points, cells))[:, None].astype(np.float32)
    if kind == "binary":
        bits = max(1, int(np.ceil(np.log2(pixels))))
        index = nearest_index(points, pixels)
        return (index[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.float32)
    if kind == "periodic":
        octaves = max(1, int(np.ceil(np.log2(pixels / cells))))
        angles = 2 * np.pi * points.astype(np.float64)[:, None] * cells * 2.0 ** np.arange(octaves)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    raise ValueError(f"unknown coordinates {kind!r}; choose from {', '.join(COORDINATES)}")


def grid_features(kind: str, rows: np.ndarray, columns: np.ndarray, *, cells, pixels) -> np.ndarray:
    """Input features of the field for every pixel of a regular grid.

    Args:
      rows, columns: [h] and [w] positions in [0, 1].
      cells, pixels: (rows, columns) of the latent grid and of the training images.
    Returns:
      [h, w, f] float32: the features of the row, then those of the column.
    """
    row = axis_features(kind, rows, cells=cells[0], pixels=pixels[0])
    column = axis_features(kind, columns, cells=cells[1], pixels=pixels[1])
    h, w = len(rows), len(columns)
    return np.concatenate(
        [
            np.broadcast_to(row[:, None], (h, w, row.shape[1])),
            np.broadcast_to(column[None], (h, w, column.shape[1])),
        ],
        axis=-1,
    )
