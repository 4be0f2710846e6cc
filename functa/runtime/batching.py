"""Application of a compiled function to many rows in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def apply_in_batches(function: Callable[..., Any], *arrays: np.ndarray, batch_size: int) -> Any:
    """Applies `function` to all rows of `arrays`, `batch_size` rows at a time.

    The last batch is padded with copies of the last row, so that one compiled program serves all
    batches and any number of rows. Rows must not depend on each other.

    Rows that do not fit into memory: pass their indices, and let `function` read them.

    Args:
      function: arrays [batch_size, ...] -> pytree of arrays [batch_size, ...]. It is usually
        compiled; it always receives `batch_size` rows.
      arrays: [n, ...] each, n >= 1.
      batch_size: rows per call.
    Returns:
      The pytree that `function` returns, as NumPy arrays [n, ...].
    Raises:
      ValueError: there are no rows, or `arrays` differ in their number of rows.
    """
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"arrays must have the same number of rows, at least 1, not {counts}")
    (count,) = counts
    results = []
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        result = jax.device_get(function(*(array[rows] for array in arrays)))
        results.append(jax.tree.map(lambda leaf: leaf[: count - start], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def apply_in_fitting_batches(
    function: Callable[..., Any], rows: np.ndarray, *, limit: int
) -> np.ndarray:
    """Applies `function` to any number of rows, also 0, in batches of `fitting_batch_size`."""
    if not len(rows):
        one = np.zeros((1, *rows.shape[1:]), rows.dtype)  # for the shape of the result
        return apply_in_batches(function, one, batch_size=1)[:0]
    return apply_in_batches(function, rows, batch_size=fitting_batch_size(len(rows), limit))


def fitting_batch_size(count: int, limit: int) -> int:
    """The smallest power of two that holds `count` rows, or `limit` if that is less.

    So few programs are compiled, whatever numbers of rows a program asks for.
    """
    return min(1 << (count - 1).bit_length(), limit)
