"""Grids of cells as coarser grids of patches, and back."""

import jax


def patches(grid: jax.Array, size: int) -> jax.Array:
    """[b, i, j, k] -> [b, i / size, j / size, size * size * k]: the cells of a patch side by side.

    Raises:
      ValueError: `size` does not divide the grid.
    """
    b, i, j, k = grid.shape
    if i % size or j % size:
        raise ValueError(f"patch={size} must divide the latent grid {i}x{j}")
    split = grid.reshape(b, i // size, size, j // size, size, k).swapaxes(2, 3)
    return split.reshape(b, i // size, j // size, size * size * k)


def cells(grid: jax.Array, size: int) -> jax.Array:
    """The inverse of `patches`."""
    b, rows, columns, _ = grid.shape
    split = grid.reshape(b, rows, columns, size, size, -1).swapaxes(2, 3)
    return split.reshape(b, rows * size, columns * size, split.shape[-1])
