"""Arrays behind the pictures of report.html, computed once when the field is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.fields import inner_loop
from functa.fields.fitter import Fitter

_IMAGES = 16
_LARGE = 4  # images that are also decoded at higher resolutions
_SCALES = (1, 4, 16)
_LARGEST_SIDE = 512  # pixels; higher resolutions are left out: they take memory and disk


def field_arrays(fitter: Fitter, params: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the field makes of some images.

    Args:
      params: of the task meta_learn.
      images: [n, h, w, c] uint8; the first 16 are used.
    Returns:
      float32 arrays: originals, reconstructions [n, h, w, c] in [0, 1]; latents [n, i, j, d];
      decoded_1x, decoded_4x, decoded_16x [m, H, W, c] as far as they are no larger than 512
      pixels a side; inner_steps [m, steps + 1, h, w, c], the images after 0 ... steps inner steps.
    """
    field = fitter.field
    images = images[:_IMAGES] / np.float32(255)
    fit = jax.jit(fitter.fit)
    result = fit(params, images)
    few = result.latents[:_LARGE]
    h, w, _ = field.image_shape
    pictures = {
        "originals": images,
        "reconstructions": result.values,
        "latents": result.latents,
        "inner_steps": inner_steps(fitter, params, images[:_LARGE]),
    }
    decode = jax.jit(field, static_argnums=2)
    for scale in _SCALES:
        if scale * max(h, w) <= _LARGEST_SIDE:
            # One image at a time: 256 times the pixels of a batch would not fit a small machine.
            values = [decode(params["field"], one[None], (scale * h, scale * w)) for one in few]
            pictures[f"decoded_{scale}x"] = np.concatenate([np.asarray(value) for value in values])
    clip = ("reconstructions", "inner_steps", "decoded_1x", "decoded_4x", "decoded_16x")
    return {
        name: np.clip(value, 0, 1) if name in clip else np.asarray(value)
        for name, value in pictures.items()
    }


def inner_steps(fitter: Fitter, params: Any, images: np.ndarray) -> np.ndarray:
    """The images growing: [n, steps + 1, h, w, c] float32, not clipped, before the first to after the last step."""
    field, loop = fitter.field, fitter.inner_loop
    zeros = jnp.zeros((len(images), *field.latent_shape), jnp.float32)
    frames = [field(params["field"], zeros)]
    for steps in range(1, loop.steps + 1):
        log_lrs = params["log_inner_lrs"]
        frames.append(
            inner_loop.fit(
                field,
                params["field"],
                log_lrs[:steps] if loop.lr_per_step else log_lrs,
                jnp.asarray(images),
                steps=steps,
                second_order=loop.second_order,
                chunks=loop.chunks,
            ).values
        )
    return np.stack([np.asarray(frame) for frame in frames], axis=1)
