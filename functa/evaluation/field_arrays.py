"""Arrays of meta_learn/report.npz: reconstructions, latents and images of the inner loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.fields.fitter import Fitter
from functa.fields.pixels import to_float

MAX_IMAGES = 16
MAX_DECODED = 4  # images decoded at higher resolutions and after each inner step
SCALES = (1, 4, 16)
MAX_SIDE = 512  # pixels; larger images take too much memory and disk


def field_arrays(fitter: Fitter, params: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Reconstructions of the first 16 images, and decoded images of the first 4.

    Args:
      params: trained parameters of the fitter.
      images: [n, h, w, c] uint8.
    Returns:
      float32 arrays: originals, reconstructions [n, h, w, c] in [0, 1]; latents [n, i, j, d];
      decoded_1x, decoded_4x, decoded_16x [m, H, W, c] in [0, 1], those with sides of at most 512
      pixels; inner_steps [m, steps + 1, h, w, c] in [0, 1], decoded after 0, 1, ... inner steps.
    """
    originals = to_float(images[:MAX_IMAGES])
    result = jax.jit(fitter.fit)(params, originals)
    arrays = {
        "originals": originals,
        "reconstructions": np.clip(result.values, 0, 1),
        "latents": np.asarray(result.latents),
        "inner_steps": _inner_step_images(fitter, params, originals[:MAX_DECODED]),
    }
    h, w, _ = fitter.field.image_shape
    decode = jax.jit(fitter.field, static_argnums=2)
    for scale in SCALES:
        if scale * max(h, w) <= MAX_SIDE:
            # One image at a time: a batch at 16x the resolution has 256x the pixels.
            decoded = [
                decode(params["field"], latents[None], (scale * h, scale * w))
                for latents in result.latents[:MAX_DECODED]
            ]
            arrays[f"decoded_{scale}x"] = np.clip(np.concatenate(decoded), 0, 1)
    return arrays


def _inner_step_images(fitter: Fitter, params: Any, images: np.ndarray) -> np.ndarray:
    """[n, steps + 1, h, w, c] float32 in [0, 1]."""
    zeros = jnp.zeros((len(images), *fitter.field.latent_shape), jnp.float32)
    values = [jax.jit(fitter.field)(params["field"], zeros)]
    for steps in range(1, fitter.inner_loop.steps + 1):
        inner_loop = dataclasses.replace(fitter.inner_loop, steps=steps)
        fit = jax.jit(dataclasses.replace(fitter, inner_loop=inner_loop).fit)
        # The array has one row of learning rates per step, or one row for all steps.
        log_inner_lrs = params["log_inner_lrs"][:steps]
        values.append(fit(params | {"log_inner_lrs": log_inner_lrs}, images).values)
    return np.clip(np.stack(values, axis=1), 0, 1)
