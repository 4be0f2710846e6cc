"""Between two data points: noise on a sphere, denoised by what their classes both ask for.

Latents themselves are not interpolated: halfway between two functa lies a cross-fade of two pictures. Noise is: its
length is what a denoiser expects, so the way between two of its draws is on a sphere, and every point of it is
denoised to a data point. Data that were not sampled have a noise too, found by following the probability flow
upwards.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion import solvers
from functa.diffusion.parameterization import Denoise

_PARALLEL = 1e-4  # radians: below it a line is as good as an arc


def spherical(first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
    """The arc from `first` (weight 0) to `second` (weight 1): [k, *shape] from two arrays of a shape and
    weights [k]; a line where they are parallel.

    Source: Shoemake 1985, equation 3.
    """
    ends = jnp.stack([first.reshape(-1), second.reshape(-1)])
    lengths = jnp.linalg.norm(ends, axis=1)
    cosine = jnp.dot(ends[0], ends[1]) / (lengths[0] * lengths[1])
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    on_arc = jnp.stack([1 - weights, weights], axis=1)
    arc = jnp.sin(angle * on_arc) / jnp.sin(angle)
    parts = jnp.where(angle < _PARALLEL, on_arc, arc) @ ends
    return parts.reshape(len(weights), *first.shape)


def noise_of(
    denoise: Denoise, sigmas: np.ndarray, latents: jax.Array, labels: jax.Array
) -> jax.Array:
    """The noisy latents at sigmas[0] that the probability flow turns into normalised `latents` [b, i, j, d].

    Args:
      sigmas: of samplers.make_schedule; the last one that is not zero stands for it.
    Source: Song et al. 2021 (arXiv 2010.02502), section 5.4; here by Heun's method.
    """
    upwards = np.asarray(sigmas)[-2::-1]
    return solvers.sample(
        denoise,
        solvers.make_solver(name="heun"),
        upwards,
        jax.random.key(0),
        numbers=jnp.zeros(len(labels), jnp.int32),
        labels=labels,
        latent_shape=latents.shape[1:],
        keep_trajectory=False,
        start=latents,
    ).latents


class Ends(NamedTuple):
    """What a strip leads from and to: noisy latents at the first sigma [2, i, j, d]; labels [2] int32."""

    noisy: jax.Array
    labels: jax.Array


def between(
    denoise: Denoise, solver: solvers.Solver, sigmas: np.ndarray, ends: Ends, *, count: int
) -> jax.Array:
    """`count` normalised latents [count, i, j, d] from one end to the other, ends included.

    Where the classes differ, what the denoiser expects of both is mixed as their noise is, linearly.
    """
    weights = jnp.linspace(0.0, 1.0, count)
    own = weights[:, None, None, None]

    def mixed(noisy: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
        first, second = (
            denoise(noisy, sigma, jnp.broadcast_to(label, labels.shape)) for label in ends.labels
        )
        return (1 - own) * first + own * second

    return solvers.sample(
        mixed,
        solver,
        sigmas,
        jax.random.key(0),
        numbers=jnp.arange(count),
        labels=jnp.zeros(count, jnp.int32),
        latent_shape=ends.noisy.shape[1:],
        keep_trajectory=False,
        start=spherical(ends.noisy[0], ends.noisy[1], weights),
    ).latents
