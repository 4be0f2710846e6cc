"""Ways between data points: arcs by the definition, noise and denoised points where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion import interpolation, solvers

SHAPE = (2, 2, 3)
SIGMAS = solvers.karras_schedule(steps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0)
HEUN = solvers.make_solver(name="heun")


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gaussian(noisy, sigma, labels):
    """The denoiser of standard normal latents."""
    return noisy / (1 + jnp.square(sigma))[:, None, None, None]


def test_an_arc_turns_evenly_and_keeps_its_length():
    first, second = random(0, *SHAPE), random(1, *SHAPE)
    second *= np.linalg.norm(first) / np.linalg.norm(second)
    arc = np.asarray(interpolation.spherical(first, second, jnp.linspace(0.0, 1.0, 5)))
    np.testing.assert_allclose(arc[0], first, atol=1e-6)
    np.testing.assert_allclose(arc[-1], second, atol=1e-6)
    flat = arc.reshape(5, -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), np.linalg.norm(first), rtol=1e-5)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    angles = np.arccos(np.sum(unit[1:] * unit[:-1], axis=1))
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)


def test_parallel_ends_are_joined_by_a_line():
    first = random(0, *SHAPE)
    line = interpolation.spherical(first, 3 * first, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(line, np.stack([first, 1.5 * first, 3 * first]), rtol=1e-4)


def test_noise_of_latents_follows_the_flow_upwards():
    latents = random(2, 4, *SHAPE)
    labels = jnp.zeros(4, jnp.int32)
    noisy = interpolation.noise_of(gaussian, SIGMAS, latents, labels)
    # The flow of a standard normal keeps x / sqrt(1 + sigma^2).
    np.testing.assert_allclose(noisy, latents * np.sqrt(1 + 80.0**2), rtol=2e-2)
    back = solvers.sample(
        gaussian, HEUN, SIGMAS, jax.random.key(0), numbers=labels, labels=labels,
        latent_shape=SHAPE, keep_trajectory=False, start=noisy,
    )  # fmt: skip
    np.testing.assert_allclose(back.latents, latents, rtol=2e-2)


def test_between_two_classes_both_are_expected():
    means = random(3, 5, *SHAPE)

    def of_class(noisy, sigma, labels):
        return jnp.asarray(means)[labels]

    ends = interpolation.Ends(jnp.asarray(80 * random(4, 2, *SHAPE)), jnp.array([1, 3]))
    drawn = interpolation.between(of_class, HEUN, SIGMAS, ends, count=5)
    mix = [(1 - t) * means[1] + t * means[3] for t in (0, 0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(drawn, mix, atol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_the_way_between_draws_of_a_gaussian_is_an_arc(solver):
    noise = random(5, 2, *SHAPE)
    ends = interpolation.Ends(jnp.asarray(80 * noise), jnp.array([0, 0]))
    made = solvers.make_solver(name=solver)
    drawn = interpolation.between(gaussian, made, SIGMAS, ends, count=3)
    arc = interpolation.spherical(noise[0], noise[1], jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(drawn, arc, atol=0.2)
    # A straight line would come out shorter in its middle.
    assert np.linalg.norm(drawn[1]) > 1.2 * np.linalg.norm(noise.mean(axis=0))
