"""Trees of arrays in two short values, by which a test knows again what an earlier version made."""

import hashlib
from typing import Any

import jax
import numpy as np


def structure(tree: Any) -> str:
    """Of names, shapes and types: what a checkpoint is read by."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    lines = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def number(tree: Any) -> float:
    """One projection of all numbers: a change of any of them changes it."""
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
    return float(flat @ np.cos(np.arange(flat.size)))


def stirred(tree: Any) -> Any:
    """With no array at zero, as fresh output layers are, which would hide what is before them."""
    return jax.tree.map(
        lambda leaf: (
            leaf + 0.1 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
        ),
        tree,
    )
