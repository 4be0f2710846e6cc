"""Interpolation: arcs against their definition, inversion and denoised points of known denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion import interpolation, solvers
from functa.diffusion.schedules import make_schedule
from tests.diffusion.gaussians import standard_normal_denoiser

SHAPE = (2, 2, 3)
SIGMAS = make_schedule(name="karras", steps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0)
HEUN = solvers.make_solver(name="heun")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_slerp_has_constant_norm_and_angles():
    first, second = normal(0, *SHAPE), normal(1, *SHAPE)
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    points = np.asarray(interpolation.slerp(first, second, jnp.linspace(0.0, 1.0, 5)))
    np.testing.assert_allclose(points[[0, -1]], [first, second], atol=1e-6)
    flat = points.reshape(5, -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), np.linalg.norm(first), rtol=1e-5)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    angles = np.arccos(np.sum(unit[1:] * unit[:-1], axis=1))
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)


def test_slerp_of_parallel_arrays_is_linear():
    first = normal(0, *SHAPE)
    points = interpolation.slerp(first, 3 * first, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(points, np.stack([first, 1.5 * first, 3 * first]), rtol=1e-4)


def test_inversion_follows_the_flow_upwards():
    latents, labels = normal(2, 4, *SHAPE), jnp.zeros(4, jnp.int32)
    noisy = interpolation.invert(standard_normal_denoiser, SIGMAS, latents, labels)
    # The flow of a standard normal preserves x / sqrt(1 + sigma^2).
    np.testing.assert_allclose(noisy, latents * np.sqrt(1 + 80.0**2), rtol=2e-2)
    samples = solvers.sample(
        standard_normal_denoiser,
        HEUN,
        SIGMAS,
        jax.random.key(0),
        numbers=labels,
        labels=labels,
        latent_shape=SHAPE,
        keep_trajectory=False,
        start=noisy,
    )
    np.testing.assert_allclose(samples.latents, latents, rtol=2e-2)


def test_denoised_latents_of_two_classes_are_mixed_linearly():
    class_means = normal(3, 5, *SHAPE)

    def denoise(noisy, sigma, labels):
        return jnp.asarray(class_means)[labels]

    noisy, labels = jnp.asarray(80 * normal(4, 2, *SHAPE)), jnp.array([1, 3])
    latents = interpolation.interpolate(denoise, HEUN, SIGMAS, noisy, labels, count=5)
    weights = np.array([0, 0.25, 0.5, 0.75, 1])[:, None, None, None]
    expected = (1 - weights) * class_means[1] + weights * class_means[3]
    np.testing.assert_allclose(latents, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_interpolation_of_a_gaussian_is_an_arc(name):
    noise = normal(5, 2, *SHAPE)
    noisy, labels, solver = (
        jnp.asarray(80 * noise),
        jnp.array([0, 0]),
        solvers.make_solver(name=name),
    )
    latents = interpolation.interpolate(
        standard_normal_denoiser, solver, SIGMAS, noisy, labels, count=3
    )
    arc = interpolation.slerp(noise[0], noise[1], jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(latents, arc, atol=0.2)
    # Linear interpolation would shrink the middle.
    assert np.linalg.norm(latents[1]) > 1.2 * np.linalg.norm(noise.mean(axis=0))
