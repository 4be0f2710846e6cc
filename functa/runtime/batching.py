"""Application of a compiled function to any number of rows in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def apply_in_batches(function: Callable[..., Any], *arrays: np.ndarray, batch_size: int) -> Any:
    """Applies a function of fixed batch size to arrays with any number of rows.

    The last batch is padded with copies of its last row, so one compiled program serves all.

    Args:
      function: arrays [batch_size, ...] -> pytree of arrays [batch_size, ...], each row of which
        depends on that row of the inputs only.
      arrays: [n, ...], n >= 1.
    Returns:
      The pytree of NumPy arrays [n, ...].
    """
    count, parts = len(arrays[0]), []
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        results = function(*(array[rows] for array in arrays))
        parts.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: count - start], results))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
