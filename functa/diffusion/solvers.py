"""ODE and SDE solvers of diffusion sampling.

All solvers follow the probability flow dx / dsigma = (x - denoise(x, sigma)) / sigma
(`parameterization.velocity`) from the largest noise level down to zero. Rectified flow has the same
trajectories: with x_t = x / (1 + sigma) and t = sigma / (1 + sigma), an Euler step in (x_t, t) is
exactly the Euler step in (x, sigma). Its sampler is the schedule "flow" with the solver "euler".

The noise of a sample is a function of the key and the sample's number, so samples do not depend on
batches, devices and processes. The steps are one `lax.scan`, so compile time does not grow with
them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion.parameterization import Denoiser, velocity
from functa.diffusion.schedules import make_named, validate_ranges

# Upper bound of gamma, the relative growth of sigma in a step (Karras et al. 2022, algorithm 2).
_MAX_CHURN = 2**0.5 - 1


class Solver(NamedTuple):
    """The properties in which solvers differ.

    Attributes:
      second_order: average the slopes at both ends of the step (Heun).
      multistep: extrapolate the denoised latents from those of the previous step (DPM-Solver++).
      churn: sigmas [steps + 1] -> gamma [steps]. Each step first adds noise up to sigma (1 + gamma).
      churn_noise: standard deviation of the added noise in units of the exact one.
    """

    second_order: bool
    multistep: bool
    churn: Callable[[np.ndarray], np.ndarray]
    churn_noise: float


def _no_churn(sigmas: np.ndarray) -> np.ndarray:
    return np.zeros(len(sigmas) - 1)


def _stochastic(*, churn: float, churn_min: float, churn_max: float, churn_noise: float) -> Solver:
    """Karras et al. 2022, algorithm 2: S_churn, S_tmin, S_tmax, S_noise."""
    validate_ranges(
        churn=(churn, 0.0, 1e4),
        churn_max=(churn_max, 0.0, 1e6),
        churn_min=(churn_min, 0.0, churn_max),
        churn_noise=(churn_noise, 0.0, 10.0),
    )

    def gammas(sigmas: np.ndarray) -> np.ndarray:
        inside = (churn_min <= sigmas[:-1]) & (sigmas[:-1] <= churn_max)
        return np.where(inside, min(churn / (len(sigmas) - 1), _MAX_CHURN), 0.0)

    return Solver(True, False, gammas, churn_noise)


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": lambda: Solver(False, False, _no_churn, 0.0),
    "heun": lambda: Solver(True, False, _no_churn, 0.0),
    "dpmpp_2m": lambda: Solver(False, True, _no_churn, 0.0),
    "stochastic": _stochastic,
}
SOLVERS_WITHOUT_SETTINGS = ("euler", "heun", "dpmpp_2m")


def make_solver(*, name: str, **settings: Any) -> Solver:
    """Returns the solver `name`.

    euler: DDIM (Song et al. 2021). heun: Karras et al. 2022, algorithm 1. dpmpp_2m: Lu et al. 2022,
    algorithm 2. stochastic: Karras et al. 2022, algorithm 2, with the settings churn, churn_min,
    churn_max and churn_noise. heun and stochastic evaluate the denoiser twice in every step but the
    last.

    Raises:
      TypeError: an unknown or missing setting.
      ValueError: an unknown name or settings out of range; the message lists all of them.
    """
    return make_named(SOLVERS, name, settings)


class Samples(NamedTuple):
    """latents [b, i, j, d]; trajectory [steps, b, i, j, d]: the denoised latents at the start of
    each step, or [0, b, i, j, d] if it is not kept."""

    latents: jax.Array
    trajectory: jax.Array


class _Step(NamedTuple):
    """Scalars of one step: its number; the standard deviation of the added noise; the noise levels
    it goes from (after the added noise) and to; the extrapolation factor of the denoised latents."""

    number: Any
    added_std: Any
    upper: Any
    lower: Any
    extrapolation: Any


def _step_table(solver: Solver, sigmas: np.ndarray) -> _Step:
    """All steps as arrays [steps], computed in float64."""
    sigmas = np.asarray(sigmas, np.float64)
    gammas = solver.churn(sigmas)
    added_std = solver.churn_noise * sigmas[:-1] * np.sqrt(gammas * (2 + gammas))
    extrapolation = np.zeros(len(sigmas) - 1)
    if solver.multistep:
        # Half the ratio of this step to the previous one in log sigma. The first step has no
        # previous one, and the last step (to zero) is infinite: both are of first order.
        lengths = -np.diff(np.log(sigmas[:-1]))
        extrapolation[1:-1] = lengths[1:] / (2 * lengths[:-1])
    return _Step(
        number=np.arange(1, len(sigmas), dtype=np.int32),
        added_std=added_std.astype(np.float32),
        upper=(sigmas[:-1] * (1 + gammas)).astype(np.float32),
        lower=sigmas[1:].astype(np.float32),
        extrapolation=extrapolation.astype(np.float32),
    )


def sample_noise(
    key: jax.Array, *, numbers: jax.Array, step: Any, latent_shape: tuple[int, ...]
) -> jax.Array:
    """Standard normal noise [b, *latent_shape], independent for every sample number and step.

    Args:
      numbers: [b] int32, the numbers of the samples.
      step: 0 for the initial noise, k for the noise added in step k.
    """

    def noise_of_sample(number):
        sample_key = jax.random.fold_in(jax.random.fold_in(key, number), step)
        return jax.random.normal(sample_key, latent_shape, jnp.float32)

    return jax.vmap(noise_of_sample)(numbers)


def sample(
    denoise: Denoiser,
    solver: Solver,
    sigmas: np.ndarray,
    key: jax.Array,
    *,
    numbers: jax.Array,
    labels: jax.Array,
    latent_shape: tuple[int, ...],
    keep_trajectory: bool,
    start: jax.Array | None = None,
) -> Samples:
    """Samples normalized latents. Pure; the caller compiles it.

    Args:
      sigmas: noise levels [steps + 1] of `schedules.make_schedule`.
      numbers: [b] int32; sample n is the same in every batch and on every device.
      labels: [b] int32, the classes.
      keep_trajectory: whether the result holds the denoised latents of all steps.
      start: [b, i, j, d] noisy latents at sigmas[0]; None: sigmas[0] times the initial noise.
    """
    steps = _step_table(solver, sigmas)
    adds_noise = bool(np.any(steps.added_std > 0))

    def denoise_at(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return denoise(x, jnp.broadcast_to(sigma, labels.shape), labels)

    def advance(carry, step: _Step):
        x, previous = carry
        if adds_noise:
            x = x + step.added_std * sample_noise(
                key, numbers=numbers, step=step.number, latent_shape=latent_shape
            )
        denoised = denoise_at(x, step.upper)
        extrapolated = denoised + step.extrapolation * (denoised - previous)
        slope = velocity(x, extrapolated, step.upper)
        change = step.lower - step.upper
        proposal = x + change * slope
        if solver.second_order:

            def correct(proposal):
                end_slope = velocity(proposal, denoise_at(proposal, step.lower), step.lower)
                return x + change * (0.5 * (slope + end_slope))

            proposal = jax.lax.cond(step.lower > 0, correct, lambda proposal: proposal, proposal)
        return (proposal, denoised), denoised if keep_trajectory else None

    if start is None:
        start = sigmas[0] * sample_noise(key, numbers=numbers, step=0, latent_shape=latent_shape)
    (latents, _), trajectory = jax.lax.scan(advance, (start, start), steps)
    return Samples(latents, jnp.zeros((0, *start.shape)) if trajectory is None else trajectory)
