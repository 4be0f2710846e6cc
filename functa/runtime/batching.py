"""Application of a compiled function to many rows in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from functa.runtime import processes


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


def apply_on_all_processes(
    function: Callable[..., Any], count: int, *, batch_size: int, name: str
) -> np.ndarray:
    """Applies `function` to rows 0 ... count - 1, each process to its part; all processes must call it.

    Args:
      function: rows [batch_size] int64 -> array [batch_size, ...] of this process.
      name: of the barrier before the results are gathered, for example "PCA".
    Returns:
      [count, ...], the same on every process.
    """
    share = -(-count // jax.process_count())
    start = jax.process_index() * share
    rows = np.minimum(np.arange(start, start + share), count - 1)
    part = apply_in_batches(function, rows, batch_size=batch_size)
    if jax.process_count() == 1:
        return part
    processes.barrier(name)  # it waits longer than a collective does
    # As bytes, since JAX would round float64 values.
    encoded = np.ascontiguousarray(part).view(np.uint8)
    gathered = multihost_utils.process_allgather(encoded, tiled=True)
    return np.asarray(gathered).view(part.dtype)[:count]


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
