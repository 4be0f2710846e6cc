"""Meta-learning written plainly, as the reference of the benchmarks.

One image at a time under vmap, modulations for every pixel, `jnp.sin`, and automatic differentiation
of every inner step. It computes what functa/fields/inner_loop.py computes, up to rounding.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from functa.fields.field import Field, Params


def unsupported(config: ConfigDict) -> str:
    """Why the reference cannot compute this field, or ""."""
    field = config.field
    if field.interpolation == "nearest" and field.map != "mlp" and field.modulation == "shift":
        return ""
    return "the reference needs nearest interpolation, a linear or conv3x3 map, and shifts"


def values(field: Field, params: Params, latents: jax.Array) -> jax.Array:
    """Decodes the latents [i, j, d] of one image to values [h, w, c]."""
    h, w, _ = field.image_shape
    i, j, d = field.latent_shape
    weight, u = params["map"]["weight"], field.upsampling
    if field.map == "conv3x3":
        kernel, axes = weight.reshape(3, 3, d, -1), ("NHWC", "HWIO", "NHWC")
        (grid,) = jax.lax.conv_general_dilated(
            latents[None], kernel, (1, 1), "SAME", dimension_numbers=axes
        )
    else:
        grid = latents @ weight
    fine = grid.reshape(i, j, u, u, -1).swapaxes(1, 2).reshape(i * u, j * u, -1)
    modulations = jnp.repeat(jnp.repeat(fine, h // (i * u), axis=0), w // (j * u), axis=1)
    shifts = jnp.split(modulations, field.depth - 1, axis=-1)
    weights, biases = params["siren"]["weights"], params["siren"]["biases"]
    hidden = jnp.asarray(field.pixel_features((h, w)))
    for weight, bias, shift in zip(weights[:-1], biases[:-1], shifts, strict=True):
        hidden = jnp.sin(hidden @ weight + bias[None, None] + shift)
    return hidden @ (weights[-1] / 10) + biases[-1][None, None] + 0.5


def fit(field: Field, params: Params, log_inner_lrs: jax.Array, image: jax.Array, *, steps: int):
    """Latents of one image, and the mean squared error after the last inner step."""
    i, j, _ = field.latent_shape
    inner_lrs = jnp.broadcast_to(jnp.exp(log_inner_lrs), (steps, *log_inner_lrs.shape[1:]))

    def error(latents):
        return jnp.mean(jnp.square(values(field, params, latents) - image))

    latents = jnp.zeros(field.latent_shape, jnp.float32)
    for step in range(steps):
        # The inner loss is the sum over cells of their mean error: i * j times the mean of the image.
        latents = latents - inner_lrs[step] * (i * j * jax.grad(error)(latents))
    return latents, error(latents)


def loss(field: Field, params, images: jax.Array, *, steps: int) -> jax.Array:
    """Mean squared error after the inner loop, of images [b, h, w, c] float32 in [0, 1]."""

    def error(image):
        return fit(field, params["field"], params["log_inner_lrs"], image, steps=steps)[1]

    return jnp.mean(jax.vmap(error)(images))
