"""Meta-learning written the plain way, as the yardstick of the benchmarks.

One image at a time under vmap, modulations for every pixel, `jnp.sin`, and automatic
differentiation of every inner step, the first one too. It computes what functa/inner_loop.py
computes, to rounding.
"""

import jax
import jax.numpy as jnp

from functa.fields.field import Field, Params


def values(field: Field, params: Params, latents: jax.Array) -> jax.Array:
    """Latents [i, j, d] of one image -> values [h, w, c]; lookup nearest, map linear or conv3x3,
    shifts only."""
    h, w, _ = field.image_shape
    i, j, d = field.latent_shape
    weight, u = params["map"]["weight"], field.upsampling

    def to_pixels(grid):
        fine = grid.reshape(i, j, u, u, -1).swapaxes(1, 2).reshape(i * u, j * u, -1)
        return jnp.repeat(jnp.repeat(fine, h // (i * u), axis=0), w // (j * u), axis=1)

    if field.map == "conv3x3":
        kernel, axes = weight.reshape(3, 3, d, -1), ("NHWC", "HWIO", "NHWC")
        (grid,) = jax.lax.conv_general_dilated(
            latents[None], kernel, (1, 1), "SAME", dimension_numbers=axes
        )
        modulations = to_pixels(grid)
    else:
        modulations = to_pixels(latents @ weight)
    shifts = jnp.split(modulations, field.depth - 1, axis=-1)
    weights, biases = params["siren"]["weights"], params["siren"]["biases"]
    hidden = jnp.asarray(field.pixel_features((h, w)))
    for weight, bias, shift in zip(weights[:-1], biases[:-1], shifts, strict=True):
        hidden = jnp.sin(hidden @ weight + bias[None, None] + shift)
    return hidden @ (weights[-1] / 10) + biases[-1][None, None] + 0.5


def fit(field: Field, params: Params, log_inner_lrs, image, *, steps: int):
    """Latents of one image, and the mean squared error of its values after the last step."""
    i, j, _ = field.latent_shape
    rates = jnp.broadcast_to(jnp.exp(log_inner_lrs), (steps, *log_inner_lrs.shape[1:]))

    def error(latents):
        return jnp.mean(jnp.square(values(field, params, latents) - image))

    latents = jnp.zeros(field.latent_shape, jnp.float32)
    for step in range(steps):
        # The sum over cells of their means is i * j times the mean over the image.
        latents = latents - rates[step] * (i * j * jax.grad(error)(latents))
    return latents, error(latents)


def loss(field: Field, params, images: jax.Array, *, steps: int) -> jax.Array:
    """Mean squared error after the inner loop of images [b, h, w, c] float32 in [0, 1]."""

    def one(image):
        return fit(field, params["field"], params["log_inner_lrs"], image, steps=steps)[1]

    return jnp.mean(jax.vmap(one)(images))
