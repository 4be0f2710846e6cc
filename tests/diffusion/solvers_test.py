"""Samplers: each step against slow NumPy, whole paths against data whose denoiser is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from functa.diffusion import parameterization, solvers

KARRAS = dict(name="karras", sigma_min=0.002, sigma_max=80.0, rho=7.0)
CHURN = dict(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
SOLVERS = {
    "euler": {"name": "euler"},
    "heun": {"name": "heun"},
    "dpmpp_2m": {"name": "dpmpp_2m"},
    "stochastic": {"name": "stochastic", **CHURN},
}
DETERMINISTIC = ("euler", "heun", "dpmpp_2m")
SHAPE = (1, 1, 2)

# Two Gaussians in the plane; the first of them alone is the other test distribution.
MEANS = np.array([[0.8, -0.5], [-1.0, 0.7]])
COVARIANCES = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.3, 0.0], [0.0, 0.2]]])
PARTS = np.array([0.3, 0.7])


@functools.cache
def mixture(count):
    """The exact denoiser of the first `count` Gaussians, differing by nothing but float32's rounding."""
    values, vectors = np.linalg.eigh(COVARIANCES[:count])
    means, values, vectors = (jnp.float32(a) for a in (MEANS[:count], values, vectors))
    log_parts = jnp.log(jnp.float32(PARTS[:count] / PARTS[:count].sum()))

    def denoise(x, sigma, labels):
        x = x.reshape(-1, 1, 2)
        spread = values[None] + jnp.square(sigma)[:, None, None]
        inside = jnp.einsum("bkd,kde->bke", x - means[None], vectors)
        scores = -0.5 * jnp.sum(jnp.square(inside) / spread + jnp.log(spread), axis=-1)
        odds = jax.nn.softmax(scores + log_parts[None], axis=-1)
        expected = means[None] + jnp.einsum("bke,kde->bkd", inside * values[None] / spread, vectors)
        return jnp.einsum("bk,bkd->bd", odds, expected).reshape(-1, *SHAPE)

    return denoise


def moments(count):
    """(mean, covariance) of the first `count` Gaussians."""
    parts = PARTS[:count] / PARTS[:count].sum()
    mean = parts @ MEANS[:count]
    apart = MEANS[:count] - mean
    covariance = np.einsum("k,kde->de", parts, COVARIANCES[:count])
    return mean, covariance + np.einsum("k,kd,ke->de", parts, apart, apart)


@functools.cache
def program(solver, steps, denoise, keep, schedule):
    """sample(key, numbers), compiled; `solver` and `schedule` are tuples of items."""

    @jax.jit
    def sample(key, numbers):
        return solvers.sample(
            denoise,
            solvers.make_solver(**dict(solver)),
            solvers.make_schedule(**dict(schedule), steps=steps),
            key,
            numbers=numbers,
            labels=jnp.zeros(numbers.shape, jnp.int32),
            latent_shape=SHAPE,
            keep_trajectory=keep,
        )

    return sample


def shrink(x, sigma, labels):
    """A denoiser that is of no distribution, and quick to compile."""
    return 0.5 * x


def run(solver, *, steps=6, numbers=32, seed=0, denoise=shrink, keep=True, schedule=KARRAS):
    """By default of the simplest denoiser, and with all the same: compilation is what these tests wait for."""
    settings = SOLVERS[solver] if isinstance(solver, str) else solver
    numbers = jnp.arange(numbers) if isinstance(numbers, int) else jnp.asarray(numbers)
    sample = program(tuple(settings.items()), steps, denoise, keep, tuple(schedule.items()))
    return sample(jax.random.key(seed), numbers)


def nothing(x, sigma, labels):
    """The denoiser that sees no noise."""
    return x


def start(numbers=32, seed=0):
    """The noise where sampling starts: a denoiser that sees none leaves it as it is."""
    return np.asarray(run("euler", steps=1, numbers=numbers, seed=seed, denoise=nothing).latents)


def slow(name, x, sigmas, denoise):
    """The solvers in their papers' words, in float64, a step after the other; also the denoised latents."""
    denoise = jax.jit(denoise)

    def d(x, sigma):
        levels, labels = jnp.full(len(x), sigma, jnp.float32), jnp.zeros(len(x), jnp.int32)
        return np.asarray(denoise(jnp.float32(x), levels, labels), np.float64)

    x, sigmas = np.asarray(x, np.float64), np.asarray(sigmas, np.float64)
    seen = []
    for step, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        seen.append(d(x, now))
        if name == "euler":  # DDIM: the expected latents, with the noise seen, at the next level
            x = seen[-1] + then * (x - seen[-1]) / now
        elif name == "heun":  # Karras et al. 2022, algorithm 1
            slope = (x - seen[-1]) / now
            ahead = x + (then - now) * slope
            if then > 0:
                end = (ahead - d(ahead, then)) / then
                ahead = x + (then - now) * (slope / 2 + end / 2)
            x = ahead
        else:  # Lu et al. 2022, algorithm 2, with alpha = 1; the last step goes to lambda = infinity
            if then == 0:
                x = seen[-1]
                continue
            h = np.log(now / then)
            mixed = seen[-1]
            if step > 0:
                r = np.log(sigmas[step - 1] / now) / h
                mixed = (1 + 1 / (2 * r)) * seen[-1] - 1 / (2 * r) * seen[-2]
            x = then / now * x - np.expm1(-h) * mixed
    return x, np.stack(seen)


def test_the_karras_schedule():
    got = solvers.make_schedule(**KARRAS, steps=18)
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    np.testing.assert_allclose(got, [*expected, 0], rtol=1e-6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(solvers.make_schedule(**KARRAS, steps=1), [80, 0])
    for change in ({"sigma_min": 0.01}, {"sigma_max": 10.0}, {"rho": 3.0}):
        assert np.abs(solvers.make_schedule(**KARRAS | change, steps=18) - got).max() > 1e-3


def test_the_flow_schedule_is_even_in_t():
    sigmas = solvers.make_schedule(name="flow", steps=4, sigma_max=99.0).astype(np.float64)
    np.testing.assert_allclose(sigmas / (1 + sigmas), [0.99, 0.7425, 0.495, 0.2475, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "steps"), [("euler", 6), ("heun", 6), ("heun", 1), ("dpmpp_2m", 6), ("dpmpp_2m", 1)]
)
def test_every_step_is_the_papers(name, steps):
    got = run(name, steps=steps, denoise=mixture(2))
    sigmas = solvers.make_schedule(**KARRAS, steps=steps)
    expected, seen = slow(name, start(), sigmas, mixture(2))
    np.testing.assert_allclose(got.latents, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.trajectory, seen, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("churn", "churn_max", "churn_noise"), [(1.2, 50.0, 1.003), (40.0, 100.0, 3.0)]
)
def test_the_stochastic_step_is_the_papers(churn, churn_max, churn_noise):
    """Karras et al. 2022, algorithm 2, one step at a time: its noise is what it differs from Heun by."""
    asked = []

    def denoise(x, sigma, labels):
        jax.debug.callback(lambda *seen: asked.append(seen), x, sigma, ordered=True)
        return 0.5 * x

    steps = 6
    changes = {"churn": churn, "churn_max": churn_max, "churn_noise": churn_noise}
    solver = SOLVERS["stochastic"] | changes
    final = np.asarray(run(solver, denoise=denoise).latents, np.float64)
    jax.effects_barrier()
    sigmas = solvers.make_schedule(**KARRAS, steps=steps).astype(np.float64)
    gamma = np.where(
        (sigmas >= 0.05) & (sigmas <= churn_max), min(churn / steps, np.sqrt(2) - 1), 0
    )
    assert 0 < np.count_nonzero(gamma[:-1]) < steps
    assert len(asked) == 2 * steps - 1
    x = start().astype(np.float64)
    noises = []
    for step in range(steps):
        raised = sigmas[step] * (1 + gamma[step])
        x_raised, sigma = asked[2 * step]
        np.testing.assert_allclose(sigma, raised, rtol=1e-5)
        added = np.asarray(x_raised, np.float64) - x
        if gamma[step]:
            noises.append(added / np.sqrt(raised**2 - sigmas[step] ** 2) / churn_noise)
        else:
            np.testing.assert_allclose(added, 0, atol=1e-4)
        slope = (x_raised - 0.5 * x_raised) / raised
        ahead = x_raised + (sigmas[step + 1] - raised) * slope
        if step + 1 < steps:
            end = 0.5 * ahead / sigmas[step + 1]
            ahead = x_raised + (sigmas[step + 1] - raised) * (slope + end) / 2
        x = ahead
    np.testing.assert_allclose(final, x, rtol=1e-3, atol=1e-3)
    noises = np.stack(noises).reshape(len(noises), -1)
    # of each step its own, and not where sampling started
    noises = np.concatenate([noises, start().reshape(1, -1) / 80])
    assert np.abs(np.corrcoef(noises) - np.eye(len(noises))).max() < 0.5
    assert 0.8 < noises.std() < 1.2


@functools.cache
def exact(numbers):
    """Where the flow of one Gaussian ends: in its own axes a deviation shrinks by sqrt(v / (v + sigma^2))."""
    values, vectors = np.linalg.eigh(COVARIANCES[0])
    inside = (start(numbers).reshape(-1, 2) - MEANS[0]) @ vectors
    return (inside * np.sqrt(values / (values + 80.0**2))) @ vectors.T + MEANS[0]


@pytest.mark.parametrize(
    ("name", "order", "error"), [("euler", 1, 0.1), ("heun", 2, 0.04), ("dpmpp_2m", 2, 0.04)]
)
def test_error_shrinks_with_the_order_of_the_solver(name, order, error):
    few, many = (
        np.asarray(run(name, steps=steps, denoise=mixture(1)).latents).reshape(-1, 2)
        for steps in (18, 72)
    )
    assert np.abs(few - exact(32)).mean() < error
    shrunk = np.abs(few - exact(32)).mean() / np.abs(many - exact(32)).mean()
    assert 4 ** (order - 0.1) < shrunk < 4 ** (order + 0.3)


def test_18_heun_steps_do_what_256_euler_steps_do():
    many, few, one = (
        np.asarray(run(name, steps=steps, denoise=mixture(2)).latents)
        for name, steps in (("euler", 256), ("heun", 18), ("euler", 18))
    )
    assert np.abs(few - many).mean() < 0.04 < 0.07 < np.abs(one - many).mean()


@pytest.mark.parametrize(
    ("solver", "steps", "count"),
    [
        ("euler", 256, 2),
        ("heun", 40, 2),
        ("dpmpp_2m", 40, 2),
        ({"name": "stochastic", **CHURN, "churn": 10.0, "churn_noise": 1.0}, 64, 2),
        ({"name": "stochastic", **CHURN, "churn": 10.0, "churn_noise": 1.0}, 64, 1),
    ],
)
def test_samples_have_the_moments_of_the_data(solver, steps, count):
    samples = run(solver, steps=steps, numbers=20_000, denoise=mixture(count), keep=False)
    got = np.asarray(samples.latents).reshape(-1, 2)
    mean, covariance = moments(count)
    # a standard error is about 0.008, and noise of sigma_max = 80 hides a hundredth of the mean
    np.testing.assert_allclose(got.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(got.T), covariance, atol=0.04)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_is_a_function_of_the_key_and_its_number(name):
    got = np.asarray(run(name).latents)
    np.testing.assert_array_equal(got, run(name).latents)
    fewer = run(name, numbers=[6, 1, 3]).latents
    np.testing.assert_allclose(got[[6, 1, 3]], fewer, rtol=1e-4, atol=1e-4)
    assert len(np.unique(got.round(4), axis=0)) == 32
    assert np.abs(got - run(name, seed=1).latents).max() > 0.1


def test_devices_change_nothing():
    mesh = jax.make_mesh((4,), ("data",))
    sharded = jax.device_put(jnp.arange(32), NamedSharding(mesh, P("data")))
    got = run("stochastic", numbers=sharded).latents
    assert len(got.sharding.device_set) == 4
    np.testing.assert_allclose(got, run("stochastic").latents, rtol=1e-4, atol=1e-4)


def test_rectified_flow_is_euler_on_the_flow_schedule():
    """The same network sampled in (x_t, t), by x <- x + (t' - t) v, in float64."""

    def network(x_t, t, labels):
        return jnp.sin(x_t) + t[:, None, None, None] * x_t

    settings = dict(distribution="normal", mean=0.0, std=1.0)
    frame = parameterization.make_frame(name="flow", prediction="velocity", **settings)
    schedule = dict(name="flow", sigma_max=999.0)
    denoise = parameterization.make_denoise(frame, network)
    got = run("euler", steps=9, denoise=denoise, schedule=schedule).latents
    times = np.linspace(0.999, 0, 10)
    x_t = start().astype(np.float64) / 80 * 0.999
    for now, then in zip(times[:-1], times[1:], strict=True):
        x_t = x_t + (then - now) * (np.sin(x_t) + now * x_t)
    np.testing.assert_allclose(got, x_t, rtol=1e-3, atol=1e-3)


def test_churn_of_nothing_is_heun():
    still = run(SOLVERS["stochastic"] | {"churn": 0.0}).latents
    np.testing.assert_allclose(still, run("heun").latents, rtol=1e-5, atol=1e-5)


def test_the_program_does_not_grow_with_steps():
    def lines(steps):
        def sample(key):
            return solvers.sample(
                mixture(2),
                solvers.make_solver(name="heun"),
                solvers.make_schedule(**KARRAS, steps=steps),
                key,
                numbers=jnp.arange(2),
                labels=jnp.zeros(2, jnp.int32),
                latent_shape=SHAPE,
                keep_trajectory=True,
            )

        return jax.jit(sample).lower(jax.random.key(0)).as_text().count("\n")

    assert lines(4) == lines(64)


def test_the_trajectory_is_kept_on_demand():
    kept = run("heun")
    assert kept.trajectory.shape == (6, 32, *SHAPE)
    # the last step goes to what is expected there
    np.testing.assert_allclose(kept.trajectory[-1], kept.latents, rtol=1e-4, atol=1e-4)
    left = run("heun", keep=False)
    assert left.trajectory.shape == (0, 32, *SHAPE)
    np.testing.assert_allclose(left.latents, kept.latents, rtol=1e-4, atol=1e-4)


def by_class(x, sigma, labels):
    """A denoiser in which the class can be read."""
    return x * 0.1 + labels.astype(jnp.float32)[:, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_is_on_the_line_through_both_denoisers(scale):
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    sigma = jnp.asarray([0.1, 0.3, 2.0, 2.1], jnp.float32)
    labels = jnp.asarray([1, 2, 3, 4], jnp.int32)
    denoise = solvers.guided(by_class, null_class=7, scale=scale, interval=(0.3, 2.0))
    got = jax.jit(denoise)(x, sigma, labels)

    @jax.jit
    def traced(scale):
        return solvers.guided(by_class, null_class=7, scale=scale, interval=(0.3, 2.0))(
            x, sigma, labels
        )

    np.testing.assert_allclose(traced(scale), got, rtol=1e-5, atol=1e-5)
    conditional, unconditional = by_class(x, sigma, labels), by_class(x, sigma, labels * 0 + 7)
    expected = np.where(
        np.array([0, 1, 1, 0])[:, None, None, None],
        unconditional + scale * (conditional - unconditional),
        conditional,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "sigma", "asked"),
    [(2.0, 1.0, [3, 7]), (2.0, 5.0, [3]), (1.0, 1.0, [3])],
)
def test_outside_the_interval_guidance_costs_nothing(scale, sigma, asked):
    labels_seen = []

    def denoise(x, sigma, labels):
        jax.debug.callback(lambda label: labels_seen.append(int(label)), labels[0], ordered=True)
        return x

    guided = solvers.guided(denoise, null_class=7, scale=scale, interval=(0.3, 2.0))
    x = jnp.ones((1, *SHAPE))
    jax.jit(guided)(x, jnp.full(1, sigma), jnp.full(1, 3, jnp.int32))
    jax.effects_barrier()
    assert labels_seen == asked


def test_each_sample_is_of_its_class():
    labels = jnp.asarray([0, 5], jnp.int32)
    sigmas = solvers.make_schedule(**KARRAS, steps=9)
    solver = solvers.make_solver(name="heun")
    got = solvers.sample(
        lambda x, sigma, labels: by_class(0 * x, sigma, labels),
        solver,
        sigmas,
        jax.random.key(0),
        numbers=jnp.arange(2),
        labels=labels,
        latent_shape=SHAPE,
        keep_trajectory=False,
    )
    np.testing.assert_allclose(got.latents[:, 0, 0, 0], [0, 5], atol=1e-4)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (solvers.make_schedule, {"name": "cosine"}, "unknown schedule 'cosine'.*karras, flow"),
        (
            solvers.make_schedule,
            KARRAS | {"steps": 0, "rho": 0.0, "sigma_min": 90.0},
            "steps=0 must be at least 1; rho=0.0 .*; sigma_min=90.0 must be from 1e-06 to 80",
        ),
        (
            solvers.make_schedule,
            {"name": "flow", "steps": 0, "sigma_max": np.inf},
            "steps=0 .*sigma_max=inf",
        ),
        (solvers.make_solver, {"name": "rk4"}, "unknown solver 'rk4'.*euler, heun, dpmpp_2m"),
        (
            solvers.make_solver,
            {"name": "stochastic", **CHURN, "churn": -1.0, "churn_min": 60.0},
            "churn=-1.0 .*churn_min=60.0 must be from 0 to 50",
        ),
        (
            functools.partial(solvers.guided, by_class, null_class=7),
            {"scale": -1.0, "interval": (2.0, 1.0)},
            r"scale=-1.0 .*interval\[0\]=2.0 must be from 0 to 1",
        ),
    ],
)
def test_impossible_values_are_named_all_at_once(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_key_that_is_not_there_is_a_type_error():
    with pytest.raises(TypeError, match="rho"):
        solvers.make_schedule(name="flow", steps=3, sigma_max=80.0, rho=7.0)
    with pytest.raises(TypeError, match="churn"):
        solvers.make_solver(name="heun", churn=1.0)
    with pytest.raises(TypeError, match="churn_noise"):
        solvers.make_solver(name="stochastic", churn=1.0, churn_min=0.0, churn_max=1.0)
