"""Conversion of stored pixels to the values that fields are trained on."""

from typing import TypeVar

import jax
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


def to_float(images: Array) -> Array:
    """Converts uint8 in 0..255 to float32 in [0, 1]; NumPy or JAX arrays."""
    return images.astype(np.float32) / np.float32(255)
