"""Grouping of latent cells into patches, and its inverse."""

import jax


def patchify(grid: jax.Array, size: int) -> jax.Array:
    """[b, i, j, k] -> [b, i / size, j / size, size * size * k], cells of a patch in row-major order.

    Raises:
      ValueError: `size` does not divide the grid.
    """
    b, i, j, k = grid.shape
    if i % size or j % size:
        raise ValueError(f"patch={size} must divide the latent grid {i}x{j}")
    split = grid.reshape(b, i // size, size, j // size, size, k).swapaxes(2, 3)
    return split.reshape(b, i // size, j // size, size * size * k)


def unpatchify(grid: jax.Array, size: int) -> jax.Array:
    """[b, i, j, size * size * k] -> [b, i * size, j * size, k]: the inverse of `patchify`."""
    b, rows, columns, _ = grid.shape
    split = grid.reshape(b, rows, columns, size, size, -1).swapaxes(2, 3)
    return split.reshape(b, rows * size, columns * size, split.shape[-1])
