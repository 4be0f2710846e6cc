"""Positions of pixels and the cells they fall in.

Convention, everywhere: coords are in [0, 1]^2, row first, and a pixel is its centre: pixel r of h
rows sits at (r + 0.5) / h. Regular grids are separable, so most functions work on one axis.
"""

import numpy as np

COORDS = ("local", "binary", "global", "periodic")


def pixel_centers(size: int) -> np.ndarray:
    """Centres of `size` pixels on one axis: [size] float32 in (0, 1)."""
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def nearest_index(points: np.ndarray, cells: int) -> np.ndarray:
    """Index of the cell that holds each point: [n] int32 in [0, cells)."""
    return np.clip(np.floor(points * cells), 0, cells - 1).astype(np.int32)


def interpolation_matrix(points: np.ndarray, cells: int) -> np.ndarray:
    """Linear interpolation between cell centres on one axis, clipped at the border.

    Args:
      points: [n] float32 in [0, 1].
      cells: number of cells on the axis; cell a has its centre at (a + 0.5) / cells.
    Returns:
      [n, cells] float32, rows sum to one: value at points = matrix @ values of the cells.
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
    """Undoes the overlap of linear interpolation: the inverse square root of its Gram matrix.

    Interpolation blurs: at four pixels a cell, what alternates from cell to cell reaches the pixels
    with 0.56 of its size on an axis (0.31 in the Gram matrix), what is even with all of it.
    Interpolation is between the centres of `parts` equal parts of each cell, here with one value.

    Args:
      points: [n] float32, centres of pixels, at least one in each part; cells: on the axis.
    Returns:
      [cells, cells] float32, symmetric: Q with Q A^T A Q = n / cells times the identity, where A
      [n, cells] takes the values of cells to points. Its eigenvalues lie in [1, 2].
    """
    matrix = interpolation_matrix(points, cells * parts).astype(np.float64)
    matrix = matrix.reshape(len(points), cells, parts).sum(axis=2)
    values, vectors = np.linalg.eigh(matrix.T @ matrix * (cells / len(points)))
    return (vectors / np.sqrt(values) @ vectors.T).astype(np.float32)


def axis_features(kind: str, points: np.ndarray, *, cells: int, pixels: int) -> np.ndarray:
    """What the field sees of a position on one axis.

    Args:
      kind: "global": the position itself in [0, 1]. "local": the position inside the cell in [0,
        1]. "binary": the bits of the index of the pixel of the *training* image, highest first, in
        {0, 1}; constant inside such a pixel, so finer decoding repeats it. "periodic": cosine and
        sine of the position inside the cell, one pair an octave down to the pixel; continuous
        across cells.
      points: [n] float32 in [0, 1].
      cells: latent grid cells on the axis.
      pixels: pixels of the training images on the axis.
    Returns:
      [n, f] float32.
    Raises:
      ValueError: an unknown kind.
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
    raise ValueError(f"coords {kind!r}: known are {', '.join(COORDS)}")


def grid_features(kind: str, rows: np.ndarray, columns: np.ndarray, *, cells, pixels) -> np.ndarray:
    """Features of every pixel of a regular grid.

    Args:
      rows, columns: [h] and [w] positions in [0, 1]; cells, pixels: pairs (rows, columns).
    Returns:
      [h, w, f] float32: the row's features, then the column's.
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
