"""Posterior sampling where the posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion import inpainting
from functa.diffusion.observation import DEGRADATIONS, Observation, observe
from functa.diffusion.schedules import make_schedule
from functa.pipeline.load import load_generator
from tests.diffusion.gaussians import standard_normal_denoiser
from tests.support import generator_runs

SIGMAS = make_schedule(name="karras", steps=160, sigma_min=0.02, sigma_max=40.0, rho=7.0)
LATENTS, PIXELS = (1, 1, 3), (2, 2, 1)
MATRIX = np.float32([[1, 0.5, 0], [0, 1, -1], [0.3, 0, 1], [1, 1, 1]])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear_field(latents):
    return (latents.reshape(-1, 3) @ MATRIX.T).reshape(-1, *PIXELS)


def exact_posterior(mask, values, std):
    """Mean and covariance of standard normal latents, given mask * (MATRIX latents) + std * noise."""
    visible = mask.reshape(-1, 1) * MATRIX
    covariance = np.linalg.inv(np.eye(3) + visible.T @ visible / std**2)
    return covariance @ visible.T @ values.reshape(-1) / std**2, covariance


@pytest.mark.parametrize("visible", [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
def test_samples_have_the_moments_of_a_gaussian_posterior(visible):
    count, std = 4000, 0.3
    mask = np.float32(visible).reshape(PIXELS)
    values = mask * linear_field(normal(1, 1, *LATENTS))[0] + std * mask * normal(2, *PIXELS)
    observation = Observation(
        *(jnp.broadcast_to(jnp.asarray(array), (count, *PIXELS)) for array in (mask, values))
    )
    sample = jax.jit(
        lambda: inpainting.sample_posterior(
            standard_normal_denoiser,
            lambda latents, mask: mask * linear_field(latents),
            observation,
            SIGMAS,
            jax.random.key(0),
            observed_std=std,
            denoiser_mse=jnp.asarray(SIGMAS[:-1] ** 2 / (1 + SIGMAS[:-1] ** 2)),
            numbers=jnp.arange(count),
            labels=jnp.zeros(count, jnp.int32),
            latent_shape=LATENTS,
        )
    )
    samples = np.asarray(sample()).reshape(count, 3)
    mean, covariance = exact_posterior(mask, np.asarray(values), std)
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.05)  # three standard errors
    sample_covariance = np.cov(samples.T)
    np.testing.assert_allclose(sample_covariance, covariance, atol=0.15)
    # Ancestral sampling underestimates the variance, see `sample_posterior`.
    assert 0.87 < np.trace(sample_covariance) / np.trace(covariance) < 1.03


def test_denoising_mse_of_a_gaussian():
    latents, labels = normal(3, 4000, *LATENTS), jnp.zeros(4000, jnp.int32)
    mse = inpainting.denoising_mse(
        standard_normal_denoiser, latents, labels, SIGMAS[:-1], jax.random.key(0)
    )
    np.testing.assert_allclose(mse, SIGMAS[:-1] ** 2 / (1 + SIGMAS[:-1] ** 2), rtol=0.1)


def test_fit_with_prior_minimizes_the_cost_of_each_example():
    prior_mean = jnp.asarray(normal(4, 5, *LATENTS))
    values = jnp.asarray(0.5 * normal(5, 5, *PIXELS))
    mask = jnp.asarray(np.float32(np.arange(20).reshape(5, *PIXELS) % 3 > 0))

    def forward(latents, mask):
        return mask * jnp.sin(0.5 * linear_field(latents))

    def cost(latents):
        misfit = jnp.square(values - forward(latents, mask)).sum((1, 2, 3)) / 0.5
        return misfit + jnp.square(latents - prior_mean).sum((1, 2, 3)) / 0.4

    fit = jax.jit(
        lambda: inpainting.fit_with_prior(
            forward,
            Observation(mask, values),
            prior_mean,
            observed_variance=0.5,
            prior_variance=0.4,
        )
    )()
    descend = jax.jit(lambda z: z - 0.02 * jax.grad(lambda z: cost(z).sum())(z))
    minimum = prior_mean
    for _ in range(500):
        minimum = descend(minimum)
    excess = np.asarray(cost(fit) - cost(minimum))
    assert np.all(excess < 0.05 * np.asarray(cost(prior_mean) - cost(minimum)) + 1e-4)


def test_fit_without_prior_is_the_inner_loop_on_visible_pixels(tmp_path):
    trained = load_generator(generator_runs.make(tmp_path / "run"))
    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)

    def fit(observation):
        return inpainting.fit_without_prior(
            trained.fitter, trained.field_params, observation, pool=1
        )

    latents = trained.fitter.fit(trained.field_params, jnp.asarray(images)).latents
    complete = Observation(jnp.ones_like(images), jnp.asarray(images))
    np.testing.assert_allclose(fit(complete), latents, rtol=1e-3, atol=1e-5)
    half = fit(observe(DEGRADATIONS["half"], images, [()] * 3))
    np.testing.assert_allclose(half[:, :, 1], latents[:, :, 1], rtol=1e-3, atol=1e-5)
    assert not half[:, :, 0].any()
