"""Interpolation between two samples, or two encoded images, through their noise.

A convex combination of two latent arrays decodes to a cross-fade of two images. The noise that two
samples start from is interpolated instead, on a sphere because a denoiser expects noise of a given
norm, and every point between is denoised. For latents that were not sampled, the noise is found by
following the probability flow upwards (inversion).
"""

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion import solvers
from functa.diffusion.parameterization import Denoiser

_PARALLEL_ANGLE = 1e-4  # radians; below it, linear interpolation avoids a division by zero


def slerp(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """Spherical linear interpolation from `first` (weight 0) to `second` (weight 1).

    Args:
      first, second: arrays of one shape; linear interpolation replaces the arc if they are parallel.
      weights: [k] in [0, 1].
    Returns:
      [k, *shape].
    Source: Shoemake 1985, equation 3.
    """
    ends = jnp.stack([first.reshape(-1), second.reshape(-1)])
    norms = jnp.linalg.norm(ends, axis=1)
    cosine = jnp.dot(ends[0], ends[1]) / (norms[0] * norms[1])
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    linear = jnp.stack([1 - weights, weights], axis=1)
    arc = jnp.sin(angle * linear) / jnp.sin(angle)
    points = jnp.where(angle < _PARALLEL_ANGLE, linear, arc) @ ends
    return points.reshape(len(weights), *first.shape)


def invert(
    denoise: Denoiser, sigmas: np.ndarray, latents: jax.Array, labels: jax.Array
) -> jax.Array:
    """Noisy latents at sigmas[0] that the probability flow maps to the normalized `latents`.

    Args:
      sigmas: of `schedules.make_schedule`; integration starts at the last level above zero.
      latents: [b, i, j, d]; labels: [b] int32.
    Source: Song et al. 2021 (arXiv 2010.02502), section 5.4, here with Heun's method.
    """
    increasing = np.asarray(sigmas)[-2::-1]
    return solvers.sample(
        denoise,
        solvers.make_solver(name="heun"),
        increasing,
        jax.random.key(0),
        numbers=jnp.zeros(len(labels), jnp.int32),
        labels=labels,
        latent_shape=latents.shape[1:],
        keep_trajectory=False,
        start=latents,
    ).latents


def interpolate(
    denoise: Denoiser,
    solver: solvers.Solver,
    sigmas: np.ndarray,
    noisy: jax.Array,
    labels: jax.Array,
    *,
    count: int,
) -> jax.Array:
    """Normalized latents [count, i, j, d] from one endpoint to the other, both included.

    If the classes differ, the denoised latents for both classes are mixed linearly.

    Args:
      sigmas: of `schedules.make_schedule`.
      noisy: endpoints [2, i, j, d], noisy latents at sigmas[0]; labels: their classes [2] int32.
    """
    weights = jnp.linspace(0.0, 1.0, count)
    column = weights[:, None, None, None]

    def mixed_denoise(x: jax.Array, sigma: jax.Array, _: jax.Array) -> jax.Array:
        first, second = (denoise(x, sigma, jnp.broadcast_to(k, (count,))) for k in labels)
        return (1 - column) * first + column * second

    return solvers.sample(
        mixed_denoise,
        solver,
        sigmas,
        jax.random.key(0),
        numbers=jnp.arange(count),
        labels=jnp.zeros(count, jnp.int32),
        latent_shape=noisy.shape[1:],
        keep_trajectory=False,
        start=slerp(noisy[0], noisy[1], weights),
    ).latents
