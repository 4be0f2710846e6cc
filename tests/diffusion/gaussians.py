"""Distributions whose exact denoiser is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Two Gaussians in the plane; the first one alone is the other test distribution.
MEANS = np.array([[0.8, -0.5], [-1.0, 0.7]])
COVARIANCES = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.3, 0.0], [0.0, 0.2]]])
WEIGHTS = np.array([0.3, 0.7])
SHAPE = (1, 1, 2)


def standard_normal_denoiser(noisy, sigma, labels):
    """Denoiser of standard normal latents."""
    return noisy / (1 + jnp.square(sigma))[:, None, None, None]


@functools.cache
def mixture_denoiser(count):
    """Denoiser of the mixture of the first `count` Gaussians."""
    values, vectors = np.linalg.eigh(COVARIANCES[:count])
    means, values, vectors = (jnp.float32(a) for a in (MEANS[:count], values, vectors))
    log_weights = jnp.log(jnp.float32(WEIGHTS[:count] / WEIGHTS[:count].sum()))

    def denoise(x, sigma, labels):
        x = x.reshape(-1, 1, 2)
        variances = values[None] + jnp.square(sigma)[:, None, None]
        inside = jnp.einsum("bkd,kde->bke", x - means[None], vectors)
        scores = -0.5 * jnp.sum(jnp.square(inside) / variances + jnp.log(variances), axis=-1)
        odds = jax.nn.softmax(scores + log_weights[None], axis=-1)
        shrunk = inside * values[None] / variances
        expected = means[None] + jnp.einsum("bke,kde->bkd", shrunk, vectors)
        return jnp.einsum("bk,bkd->bd", odds, expected).reshape(-1, *SHAPE)

    return denoise


def mixture_moments(count):
    """(mean, covariance) of the mixture."""
    weights = WEIGHTS[:count] / WEIGHTS[:count].sum()
    mean = weights @ MEANS[:count]
    offsets = MEANS[:count] - mean
    covariance = np.einsum("k,kde->de", weights, COVARIANCES[:count])
    return mean, covariance + np.einsum("k,kd,ke->de", weights, offsets, offsets)
