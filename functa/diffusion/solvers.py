"""Samplers: latents from noise, by a denoiser that expects x among noisy latents x + sigma * noise.

All of them follow the probability flow d x / d sigma = (x - denoise(x, sigma)) / sigma (diffusion.velocity) from
sigma_max down to zero. That of rectified flow is the same: with x_t = x / (1 + sigma) and t = sigma / (1 + sigma) an
Euler step in (x_t, t) is, exactly, the Euler step in (x, sigma), so the schedule "flow" with "euler" is its sampler.

The noise of a sample is a function of the key and of the sample's own number, so that samples do not depend on
batches, devices and processes. The steps are one loop: compile time does not grow with them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion.parameterization import Denoise, velocity
from functa.runtime.config import range_errors

# Of gamma, the relative growth of sigma in one step (Karras et al. 2022, algorithm 2).
_LARGEST_CHURN = 2**0.5 - 1


def karras_schedule(*, steps: int, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    """Equally spaced in sigma^(1 / rho) from sigma_max to sigma_min, then zero: [steps + 1] float32.

    Source: Karras et al. 2022, equation 5; there 18 steps, 0.002, 80 and rho 7.
    """
    problems = range_errors({"sigma_max": (sigma_max, 1e-3, 1e5), "rho": (rho, 0.1, 100.0)})
    problems += range_errors({"sigma_min": (sigma_min, 1e-6, sigma_max)})
    _refuse("schedule karras", _step_problems(steps) + problems)
    ends = np.array([sigma_max, sigma_min]) ** (1 / rho)
    sigmas = np.linspace(ends[0], ends[1], steps) ** rho
    return np.append(sigmas, 0).astype(np.float32)


def flow_schedule(*, steps: int, sigma_max: float) -> np.ndarray:
    """Equally spaced in t = sigma / (1 + sigma) from sigma_max to zero: [steps + 1] float32.

    Rectified flow starts at t = 1, noise alone; here t = sigma_max / (1 + sigma_max), 0.999 for 999.
    """
    problems = _step_problems(steps) + range_errors({"sigma_max": (sigma_max, 1e-3, 1e5)})
    _refuse("schedule flow", problems)
    t = np.linspace(sigma_max / (1 + sigma_max), 0, steps + 1)
    return (t / (1 - t)).astype(np.float32)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {"karras": karras_schedule, "flow": flow_schedule}


def make_schedule(*, name: str, **rest: Any) -> np.ndarray:
    """The schedule `name` (karras, flow) with the rest of its keys: falling noise levels [steps + 1]
    float32, the last one zero.

    Raises:
      TypeError: a key that this schedule does not have, or one that is missing.
      ValueError: an unknown name or impossible values; the message lists all of them.
    """
    return _known("schedule", SCHEDULES, name)(**rest)


class Solver(NamedTuple):
    """How a step goes from sigma to the next sigma; all solvers are made of these four.

    Attributes:
      second_order: whether the slope is averaged with the one at the end of the step (Heun).
      extrapolate: whether the denoised latents are extrapolated from the last step's (DPM-Solver++).
      churn: sigmas [steps + 1] -> gamma [steps]: noise is added up to sigma (1 + gamma) before the step.
      churn_noise: standard deviation of the noise added, over what exactness would ask for.
    """

    second_order: bool
    extrapolate: bool
    churn: Callable[[np.ndarray], np.ndarray]
    churn_noise: float


def _none(sigmas: np.ndarray) -> np.ndarray:
    return np.zeros(len(sigmas) - 1)


def _stochastic(*, churn: float, churn_min: float, churn_max: float, churn_noise: float) -> Solver:
    """Karras et al. 2022, algorithm 2: S_churn, S_tmin, S_tmax, S_noise."""
    problems = range_errors({"churn": (churn, 0.0, 1e4), "churn_max": (churn_max, 0.0, 1e6)})
    problems += range_errors({"churn_min": (churn_min, 0.0, churn_max)})
    problems += range_errors({"churn_noise": (churn_noise, 0.0, 10.0)})
    _refuse("solver stochastic", problems)

    def gammas(sigmas):
        inside = (churn_min <= sigmas[:-1]) & (sigmas[:-1] <= churn_max)
        return np.where(inside, min(churn / (len(sigmas) - 1), _LARGEST_CHURN), 0.0)

    return Solver(True, False, gammas, churn_noise)


SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": lambda: Solver(False, False, _none, 0.0),
    "heun": lambda: Solver(True, False, _none, 0.0),
    "dpmpp_2m": lambda: Solver(False, True, _none, 0.0),
    "stochastic": _stochastic,
}


def make_solver(*, name: str, **rest: Any) -> Solver:
    """The solver `name` with the rest of its keys.

    euler: DDIM (Song et al. 2021). heun: Karras et al. 2022, algorithm 1. dpmpp_2m: Lu et al. 2022,
    algorithm 2. stochastic: Karras et al. 2022, algorithm 2, with its keys churn, churn_min, churn_max and
    churn_noise. Heun and stochastic evaluate the denoiser twice a step, except in the last one.

    Raises:
      TypeError: a key that this solver does not have, or one that is missing.
      ValueError: an unknown name or impossible values; the message lists all of them.
    """
    return _known("solver", SOLVERS, name)(**rest)


class Samples(NamedTuple):
    """latents [b, i, j, d]; trajectory [steps, b, i, j, d]: what the denoiser expected at the beginning
    of each step, or [0, b, i, j, d] where it is not kept."""

    latents: jax.Array
    trajectory: jax.Array


class _Step(NamedTuple):
    """One step of the loop, scalars: its number; the standard deviation of the noise that is added
    first; from which sigma, that noise included, to which; how far the denoised latents are
    extrapolated."""

    number: Any
    added: Any
    upper: Any
    lower: Any
    extrapolation: Any


def _plan(solver: Solver, sigmas: np.ndarray) -> _Step:
    """All steps, [steps] each, computed in float64: the loop has no precision to lose."""
    sigmas = np.asarray(sigmas, np.float64)
    gammas = solver.churn(sigmas)
    added = solver.churn_noise * sigmas[:-1] * np.sqrt(gammas * (2 + gammas))
    extrapolation = np.zeros(len(sigmas) - 1)
    if solver.extrapolate:
        # Half the ratio of this step to the last one in log sigma. The first step has no last one,
        # and the step to zero is infinite: both take the denoised latents as they are.
        lengths = -np.diff(np.log(sigmas[:-1]))
        extrapolation[1:-1] = lengths[1:] / (2 * lengths[:-1])
    return _Step(
        number=np.arange(1, len(sigmas), dtype=np.int32),
        added=added.astype(np.float32),
        upper=(sigmas[:-1] * (1 + gammas)).astype(np.float32),
        lower=sigmas[1:].astype(np.float32),
        extrapolation=extrapolation.astype(np.float32),
    )


def noise(
    key: jax.Array, *, numbers: jax.Array, step: Any, latent_shape: tuple[int, ...]
) -> jax.Array:
    """Standard normal [b, *latent_shape], independent in every sample of `numbers` [b] and in every step; step 0
    is where sampling starts."""

    def one(number):
        own = jax.random.fold_in(jax.random.fold_in(key, number), step)
        return jax.random.normal(own, latent_shape, jnp.float32)

    return jax.vmap(one)(numbers)


def sample(
    denoise: Denoise,
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
    """Draws samples; pure, to be compiled by the caller.

    Args:
      denoise: see diffusion.make_denoise.
      sigmas: of make_schedule.
      numbers: [b] int32, which samples: number n is the same sample in every batch and on every device.
      labels: [b] int32, the class of each.
      keep_trajectory: whether the result holds all steps.
      start: [b, i, j, d] noisy latents at sigmas[0]; None: sigmas[0] * noise(..., step=0).
    """
    plan = _plan(solver, sigmas)
    churns = bool(np.any(plan.added > 0))

    def expected(x, sigma):
        return denoise(x, jnp.broadcast_to(sigma, labels.shape), labels)

    def advance(carry, step: _Step):
        x, last = carry
        if churns:
            x = x + step.added * noise(
                key, numbers=numbers, step=step.number, latent_shape=latent_shape
            )
        denoised = expected(x, step.upper)
        slope = velocity(x, denoised + step.extrapolation * (denoised - last), step.upper)
        change = step.lower - step.upper
        ahead = x + change * slope
        if solver.second_order:

            def corrected(ahead):
                end = velocity(ahead, expected(ahead, step.lower), step.lower)
                return x + change * (0.5 * (slope + end))

            ahead = jax.lax.cond(step.lower > 0, corrected, lambda ahead: ahead, ahead)
        return (ahead, denoised), denoised if keep_trajectory else None

    if start is None:
        start = sigmas[0] * noise(key, numbers=numbers, step=0, latent_shape=latent_shape)
    (latents, _), trajectory = jax.lax.scan(advance, (start, start), plan)
    return Samples(latents, jnp.zeros((0, *start.shape)) if trajectory is None else trajectory)


def guided(
    denoise: Denoise, *, null_class: int, scale: Any, interval: tuple[float, float]
) -> Denoise:
    """Classifier-free guidance in an interval of noise levels.

    Args:
      null_class: the label that means "of any class".
      scale: 0 is the unconditional denoiser, 1 the conditional one (at the price of one), more exaggerates
        what the class adds: unconditional + scale * (conditional - unconditional). A float, or a traced scalar, so
        that one program does for many scales; what a traced one costs does not depend on it.
      interval: (lowest, highest) sigma where it acts, ends included; outside, the denoiser is the conditional one
        and the unconditional one is not evaluated.
    Raises:
      ValueError: an interval or a scale that is none.
    Source: Ho and Salimans 2022, equation 6; Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """
    low, high = interval
    traced = isinstance(scale, jax.Array)
    problems = [] if traced else range_errors({"scale": (scale, 0.0, 1e3)})
    problems += range_errors({"interval[1]": (high, 0.0, 1e6), "interval[0]": (low, 0.0, high)})
    _refuse("guidance", problems)
    if not traced and scale == 1:
        return denoise

    def guided_denoise(noisy, sigma, labels):
        inside = (low <= sigma) & (sigma <= high)
        conditional = denoise(noisy, sigma, labels)

        def guide(conditional):
            unconditional = denoise(noisy, sigma, jnp.full_like(labels, null_class))
            guided = unconditional + scale * (conditional - unconditional)
            return jnp.where(inside[:, None, None, None], guided, conditional)

        return jax.lax.cond(jnp.any(inside), guide, lambda c: c, conditional)

    return guided_denoise


def _known(what: str, table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known are {', '.join(table)}")
    return table[name]


def _step_problems(steps: int) -> list[str]:
    return [] if steps >= 1 else [f"steps={steps} must be at least 1"]


def _refuse(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"the {what} cannot be built: " + "; ".join(problems))
