"""Solvers: each step against NumPy, and whole paths of distributions with a known denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from functa.diffusion import parameterization, solvers
from functa.diffusion.schedules import make_schedule
from tests.diffusion.gaussians import COVARIANCES, MEANS, SHAPE, mixture_denoiser, mixture_moments

KARRAS = dict(name="karras", sigma_min=0.002, sigma_max=80.0, rho=7.0)
CHURN = dict(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
SOLVERS = {
    "euler": {"name": "euler"},
    "heun": {"name": "heun"},
    "dpmpp_2m": {"name": "dpmpp_2m"},
    "stochastic": {"name": "stochastic", **CHURN},
}


@functools.cache
def compiled_sample(solver, steps, denoise, keep_trajectory, schedule):
    """sample(key, numbers); `solver` and `schedule` are tuples of items."""

    @jax.jit
    def sample(key, numbers):
        return solvers.sample(
            denoise,
            solvers.make_solver(**dict(solver)),
            make_schedule(**dict(schedule), steps=steps),
            key,
            numbers=numbers,
            labels=jnp.zeros(numbers.shape, jnp.int32),
            latent_shape=SHAPE,
            keep_trajectory=keep_trajectory,
        )

    return sample


def halve(x, sigma, labels):
    """A denoiser that compiles fast."""
    return 0.5 * x


def identity(x, sigma, labels):
    return x


def sample(solver, *, steps=6, numbers=32, seed=0, denoise=halve, keep=True, schedule=KARRAS):
    settings = SOLVERS[solver] if isinstance(solver, str) else solver
    numbers = jnp.arange(numbers) if isinstance(numbers, int) else jnp.asarray(numbers)
    program = compiled_sample(
        tuple(settings.items()), steps, denoise, keep, tuple(schedule.items())
    )
    return program(jax.random.key(seed), numbers)


def initial_noise(numbers=32):
    """Noise at the first level: the denoiser `identity` leaves it unchanged."""
    return np.asarray(sample("euler", steps=1, numbers=numbers, denoise=identity).latents)


def sample_reference(name, x, sigmas, denoise):
    """The solvers as in their papers, in float64: (latents, denoised latents of each step)."""
    denoise = jax.jit(denoise)

    def d(x, sigma):
        levels, labels = jnp.full(len(x), sigma, jnp.float32), jnp.zeros(len(x), jnp.int32)
        return np.asarray(denoise(jnp.float32(x), levels, labels), np.float64)

    x, sigmas = np.asarray(x, np.float64), np.asarray(sigmas, np.float64)
    trajectory = []
    for step, (sigma, lower) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        trajectory.append(d(x, sigma))
        if name == "euler":  # DDIM
            x = trajectory[-1] + lower * (x - trajectory[-1]) / sigma
        elif name == "heun":  # Karras et al. 2022, algorithm 1
            slope = (x - trajectory[-1]) / sigma
            proposal = x + (lower - sigma) * slope
            if lower > 0:
                end_slope = (proposal - d(proposal, lower)) / lower
                proposal = x + (lower - sigma) * (slope / 2 + end_slope / 2)
            x = proposal
        elif lower == 0:  # Lu et al. 2022, algorithm 2, with alpha = 1; lambda is infinite
            x = trajectory[-1]
        else:
            h, mixed = np.log(sigma / lower), trajectory[-1]
            if step > 0:
                r = np.log(sigmas[step - 1] / sigma) / h
                mixed = (1 + 1 / (2 * r)) * trajectory[-1] - 1 / (2 * r) * trajectory[-2]
            x = lower / sigma * x - np.expm1(-h) * mixed
    return x, np.stack(trajectory)


@pytest.mark.parametrize(
    ("name", "steps"), [("euler", 6), ("heun", 6), ("heun", 1), ("dpmpp_2m", 6), ("dpmpp_2m", 1)]
)
def test_steps_match_the_papers(name, steps):
    samples = sample(name, steps=steps, denoise=mixture_denoiser(2))
    sigmas = make_schedule(**KARRAS, steps=steps)
    latents, trajectory = sample_reference(name, initial_noise(), sigmas, mixture_denoiser(2))
    np.testing.assert_allclose(samples.latents, latents, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(samples.trajectory, trajectory, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("churn", "churn_max", "churn_noise"), [(1.2, 50.0, 1.003), (40.0, 100.0, 3.0)]
)
def test_stochastic_steps_match_the_paper(churn, churn_max, churn_noise):
    """Karras et al. 2022, algorithm 2; the added noise is recovered from the denoiser's inputs."""
    calls = []

    def denoise(x, sigma, labels):
        jax.debug.callback(lambda *inputs: calls.append(inputs), x, sigma, ordered=True)
        return 0.5 * x

    steps = 6
    changes = {"churn": churn, "churn_max": churn_max, "churn_noise": churn_noise}
    latents = sample(SOLVERS["stochastic"] | changes, denoise=denoise).latents
    jax.effects_barrier()
    sigmas = make_schedule(**KARRAS, steps=steps).astype(np.float64)
    is_inside = (sigmas >= 0.05) & (sigmas <= churn_max)
    gamma = np.where(is_inside, min(churn / steps, np.sqrt(2) - 1), 0)
    assert 0 < np.count_nonzero(gamma[:-1]) < steps
    assert len(calls) == 2 * steps - 1
    x, noises = initial_noise().astype(np.float64), []
    for step in range(steps):
        raised = sigmas[step] * (1 + gamma[step])
        x_raised, sigma = calls[2 * step]
        np.testing.assert_allclose(sigma, raised, rtol=1e-5)
        added = np.asarray(x_raised, np.float64) - x
        if gamma[step]:
            noises.append(added / np.sqrt(raised**2 - sigmas[step] ** 2) / churn_noise)
        else:
            np.testing.assert_allclose(added, 0, atol=1e-4)
        slope = 0.5 * x_raised / raised
        x = x_raised + (sigmas[step + 1] - raised) * slope
        if step + 1 < steps:
            end_slope = 0.5 * x / sigmas[step + 1]
            x = x_raised + (sigmas[step + 1] - raised) * (slope + end_slope) / 2
    np.testing.assert_allclose(latents, x, rtol=1e-3, atol=1e-3)
    # The noise of every step is independent, also of the initial noise.
    noises = np.stack([*noises, initial_noise() / 80]).reshape(len(noises) + 1, -1)
    assert np.abs(np.corrcoef(noises) - np.eye(len(noises))).max() < 0.5
    assert 0.8 < noises.std() < 1.2


@functools.cache
def exact_latents():
    """End of the flow of one Gaussian: along its axes, deviations shrink by sqrt(v / (v + sigma^2))."""
    values, vectors = np.linalg.eigh(COVARIANCES[0])
    inside = (initial_noise().reshape(-1, 2) - MEANS[0]) @ vectors
    return (inside * np.sqrt(values / (values + 80.0**2))) @ vectors.T + MEANS[0]


@pytest.mark.parametrize(
    ("name", "order", "max_error"), [("euler", 1, 0.1), ("heun", 2, 0.04), ("dpmpp_2m", 2, 0.04)]
)
def test_error_has_the_order_of_the_solver(name, order, max_error):
    few, many = (
        np.abs(
            np.asarray(sample(name, steps=steps, denoise=mixture_denoiser(1)).latents).reshape(
                -1, 2
            )
            - exact_latents()
        ).mean()
        for steps in (18, 72)
    )
    assert few < max_error
    assert 4 ** (order - 0.1) < few / many < 4 ** (order + 0.3)


@pytest.mark.parametrize(
    ("solver", "steps", "count"),
    [
        ("euler", 256, 2),
        ("heun", 40, 2),
        ("dpmpp_2m", 40, 2),
        ({"name": "stochastic", **CHURN, "churn": 10.0, "churn_noise": 1.0}, 64, 2),
    ],
)
def test_samples_have_the_moments_of_the_data(solver, steps, count):
    denoise = mixture_denoiser(count)
    samples = sample(solver, steps=steps, numbers=20_000, denoise=denoise, keep=False)
    latents = np.asarray(samples.latents).reshape(-1, 2)
    mean, covariance = mixture_moments(count)
    np.testing.assert_allclose(latents.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(latents.T), covariance, atol=0.04)


@pytest.mark.parametrize("name", ["heun", "stochastic"])
def test_samples_are_functions_of_key_and_number(name):
    latents = np.asarray(sample(name).latents)
    np.testing.assert_array_equal(latents, sample(name).latents)
    some = sample(name, numbers=[6, 1, 3]).latents
    np.testing.assert_allclose(latents[[6, 1, 3]], some, rtol=1e-4, atol=1e-4)
    assert len(np.unique(latents.round(4), axis=0)) == 32
    assert np.abs(latents - sample(name, seed=1).latents).max() > 0.1


def test_samples_do_not_depend_on_devices():
    mesh = jax.make_mesh((4,), ("data",))
    sharded = jax.device_put(jnp.arange(32), NamedSharding(mesh, P("data")))
    latents = sample("stochastic", numbers=sharded).latents
    assert len(latents.sharding.device_set) == 4
    np.testing.assert_allclose(latents, sample("stochastic").latents, rtol=1e-4, atol=1e-4)


def test_euler_on_the_flow_schedule_is_rectified_flow():
    """The same network sampled by x <- x + (t' - t) v in float64."""

    def network(x_t, t, labels):
        return jnp.sin(x_t) + t[:, None, None, None] * x_t

    flow = parameterization.make_parameterization(
        name="flow", prediction="velocity", distribution="normal", mean=0.0, std=1.0
    )
    schedule = dict(name="flow", sigma_max=999.0)
    denoise = parameterization.make_denoiser(flow, network)
    latents = sample("euler", steps=9, denoise=denoise, schedule=schedule).latents
    times = np.linspace(0.999, 0, 10)
    x_t = initial_noise().astype(np.float64) / 80 * 0.999
    for t, lower in zip(times[:-1], times[1:], strict=True):
        x_t = x_t + (lower - t) * (np.sin(x_t) + t * x_t)
    np.testing.assert_allclose(latents, x_t, rtol=1e-3, atol=1e-3)


def test_program_size_does_not_depend_on_steps():
    def lines(steps):
        program = compiled_sample(
            tuple(SOLVERS["heun"].items()), steps, halve, True, tuple(KARRAS.items())
        )
        return program.lower(jax.random.key(0), jnp.arange(2)).as_text().count("\n")

    assert lines(4) == lines(64)


def test_trajectory_is_optional():
    with_trajectory, without = sample("heun"), sample("heun", keep=False)
    assert with_trajectory.trajectory.shape == (6, 32, *SHAPE)
    assert without.trajectory.shape == (0, 32, *SHAPE)
    for latents in (with_trajectory.trajectory[-1], without.latents):
        np.testing.assert_allclose(latents, with_trajectory.latents, rtol=1e-4, atol=1e-4)


def test_samples_have_their_labels():
    samples = solvers.sample(
        lambda x, sigma, labels: 0 * x + labels.astype(jnp.float32)[:, None, None, None],
        solvers.make_solver(name="heun"),
        make_schedule(**KARRAS, steps=9),
        jax.random.key(0),
        numbers=jnp.arange(2),
        labels=jnp.asarray([0, 5], jnp.int32),
        latent_shape=SHAPE,
        keep_trajectory=False,
    )
    np.testing.assert_allclose(samples.latents[:, 0, 0, 0], [0, 5], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "rk4"}, "rk4"),
        (
            {"name": "stochastic", **CHURN, "churn": -1.0, "churn_min": 60.0},
            r"(?s)churn=.*churn_min=",
        ),
    ],
)
def test_all_invalid_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        solvers.make_solver(**settings)


@pytest.mark.parametrize(
    "settings", [{"name": "heun", "churn": 1.0}, {"name": "stochastic", "churn": 1.0}]
)
def test_unknown_and_missing_settings_are_type_errors(settings):
    with pytest.raises(TypeError, match="churn"):
        solvers.make_solver(**settings)
