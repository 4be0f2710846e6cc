"""Conversion of stored pixels to the values that fields are trained on."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """Converts uint8 in 0..255 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / jnp.float32(255)
