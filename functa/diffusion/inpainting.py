"""Posterior sampling of latents given part of an image, with a diffusion model as prior.

At every noise level the denoiser predicts the latents. One or more Gauss-Newton steps move the
prediction towards latents whose decoded image fits the observed pixels, as far as the measured
error of the denoiser allows. The vector-Jacobian product of the denoiser carries the change to
latents that no observed pixel depends on. Ancestral sampling then continues. For normally
distributed latents of unit variance and a linear field, every step is the exact expectation.

Source: Song et al. 2023 (Pseudoinverse-guided diffusion models), equations 7 and 8, with linear
  observations and the error sigma^2 / (1 + sigma^2). Deviations: Gauss-Newton through the field,
  and a measured error of the denoiser. Guidance by the gradient alone is Chung et al. 2023 (DPS).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from functa.diffusion import solvers
from functa.diffusion.observation import Observation, degrade
from functa.diffusion.parameterization import Denoiser, add_noise
from functa.fields import inner_loop
from functa.fields.fitter import Fitter

# (latents [b, i, j, d], mask [b, h, w, c]) -> values [b, h, w, c] of an Observation, without noise
Forward = Callable[[jax.Array, jax.Array], jax.Array]

_NEWTON_STEPS = 2
_CG_STEPS = 10
# Candidates of the line search: the field is close to linear only for short steps.
_STEP_SIZES = (1.0, 0.5, 0.2, 0.0)


def fit_without_prior(
    fitter: Fitter, params: Any, observation: Observation, *, pool: int
) -> jax.Array:
    """Latents [b, i, j, d] of the inner loop on the observed pixels alone.

    Args:
      params: of `fitter`.
    """
    field, steps = fitter.field, fitter.inner_loop.steps
    inner_lrs = jnp.exp(params["log_inner_lrs"])
    inner_lrs = jnp.broadcast_to(inner_lrs, (steps, *inner_lrs.shape[1:]))
    p, q = field.cell_shape(field.image_shape[:2])

    def loss(latents: jax.Array) -> jax.Array:
        values = degrade(field(params["field"], latents), observation.mask, pool)
        # The same scale as in the inner loop, in which every pixel of a cell is observed.
        return jnp.sum(jnp.square(values - observation.values)) / (p * q * field.image_shape[2])

    latents = jnp.zeros((len(observation.values), *field.latent_shape), jnp.float32)
    for step in range(steps):
        gradient = jax.grad(loss)(latents)
        latents = inner_loop.inner_step(field, latents, inner_lrs[step][None], gradient)
    return latents


def denoising_mse(
    denoise: Denoiser, latents: jax.Array, labels: jax.Array, sigmas: np.ndarray, key: jax.Array
) -> jax.Array:
    """Mean squared error of the denoiser at each noise level: [levels].

    Args:
      latents: [b, i, j, d] normalized, preferably not from the training split; labels: [b] int32.
      sigmas: [levels], positive.
    """

    def mse_at_level(level):
        sigma, noise_key = level
        sigma = jnp.broadcast_to(sigma, (len(latents),))
        noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
        denoised = denoise(add_noise(latents, noise, sigma), sigma, labels)
        return jnp.mean(jnp.square(denoised - latents))

    levels = jnp.asarray(sigmas)
    return jax.lax.map(mse_at_level, (levels, jax.random.split(key, len(levels))))


def fit_with_prior(
    forward: Forward,
    observation: Observation,
    prior_mean: jax.Array,
    *,
    observed_variance: jax.Array,
    prior_variance: jax.Array,
) -> jax.Array:
    """Latents z [b, i, j, d] that fit the observation and the prior.

    They approximately minimize |forward(z) - values|^2 / observed_variance + |z - prior_mean|^2 /
    prior_variance, by Gauss-Newton steps from prior_mean [b, i, j, d] with a line search.
    """
    ratio = prior_variance / observed_variance

    def fit_one(observation: Observation, prior_mean: jax.Array) -> jax.Array:
        def predict(latents):
            return forward(latents[None], observation.mask[None])[0]

        def cost(latents):
            misfit = jnp.sum(jnp.square(observation.values - predict(latents)))
            return ratio * misfit + jnp.sum(jnp.square(latents - prior_mean))

        def newton_step(_, latents):
            values, jvp = jax.linearize(predict, latents)
            transpose = jax.linear_transpose(jvp, latents)
            negative_gradient = (
                ratio * transpose(observation.values - values)[0] + prior_mean - latents
            )
            step, _ = cg(
                lambda v: v + ratio * transpose(jvp(v))[0], negative_gradient, maxiter=_CG_STEPS
            )
            candidates = jnp.stack([latents + size * step for size in _STEP_SIZES])
            return candidates[jnp.argmin(jax.lax.map(cost, candidates))]

        return jax.lax.fori_loop(0, _NEWTON_STEPS, newton_step, prior_mean)

    return jax.vmap(fit_one)(observation, prior_mean)


def sample_posterior(
    denoise: Denoiser,
    forward: Forward,
    observation: Observation,
    sigmas: np.ndarray,
    key: jax.Array,
    *,
    observed_std: float,
    denoiser_mse: jax.Array,
    numbers: jax.Array,
    labels: jax.Array,
    latent_shape: tuple[int, ...],
) -> jax.Array:
    """Samples normalized latents [b, i, j, d] given the observation.

    The mean is accurate after few steps. The variance is too small, as always in ancestral sampling:
    for a Gaussian by a quarter after 20 steps and by a twentieth after 160.

    Args:
      forward: of normalized latents.
      sigmas: decreasing noise levels [steps + 1], the last one zero.
      observed_std: standard deviation of the observed values given the latents.
      denoiser_mse: [steps], of `denoising_mse`.
      numbers: [b] int32; the randomness of a sample depends on the key and its number.
      labels: [b] int32.
    """

    def noise(step):
        return solvers.sample_noise(key, numbers=numbers, step=step, latent_shape=latent_shape)

    def advance(noisy, step):
        number, sigma, lower, variance = step
        level = jnp.broadcast_to(sigma, labels.shape)
        prior_mean, vjp = jax.vjp(lambda x: denoise(x, level, labels), noisy)
        fit = fit_with_prior(
            forward,
            observation,
            prior_mean,
            observed_variance=jnp.square(observed_std),
            prior_variance=variance,
        )
        # fit - prior_mean is variance times the gradient of log p(values | prior_mean), and the
        # covariance of the denoiser is sigma^2 times its Jacobian: this is E[latents | values].
        correction = vjp((fit - prior_mean) * (jnp.square(sigma) / variance))[0]
        latents = prior_mean + correction
        # Ancestral sampling: the remaining and the fresh noise have variance lower^2 in total.
        remaining = jnp.square(lower / sigma)
        fresh_std = lower * jnp.sqrt(1 - remaining)
        return latents + remaining * (noisy - latents) + fresh_std * noise(number), None

    steps = len(sigmas) - 1
    levels = (jnp.arange(1, steps + 1), jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:]))
    start = sigmas[0] * noise(0)
    return jax.lax.scan(advance, start, (*levels, denoiser_mse))[0]
