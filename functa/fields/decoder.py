"""Decoding of latents to images in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.fields.field import Field
from functa.runtime.batching import apply_in_batches


def make_decoder(
    field: Field, params: Any, *, batch_size: int, scale: int = 1
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns latents [n, i, j, d] -> images [n, scale h, scale w, c] float32 in [0, 1].

    Args:
      params: of the stage meta_learn, on the host.
      scale: resolution in units of the training resolution.
    """
    h, w, _ = field.image_shape
    shape = (scale * h, scale * w)

    @jax.jit
    def decode(latents: jax.Array) -> jax.Array:
        return jnp.clip(field(params["field"], latents, shape=shape), 0, 1)

    return lambda latents: apply_in_batches(decode, latents, batch_size=batch_size)
