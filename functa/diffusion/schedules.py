"""Noise schedules: the decreasing noise levels of a sampler."""

from collections.abc import Callable
from typing import Any

import numpy as np

from functa.runtime.config import range_errors

_MAX_STEPS = 10**6


def karras_schedule(*, steps: int, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    """Levels equally spaced in sigma^(1 / rho) from sigma_max to sigma_min, then zero.

    Returns:
      [steps + 1] float32.
    Source: Karras et al. 2022, equation 5, with 18 steps, 0.002, 80 and rho 7.
    """
    validate_ranges(
        steps=(steps, 1, _MAX_STEPS),
        sigma_max=(sigma_max, 1e-3, 1e5),
        sigma_min=(sigma_min, 1e-6, sigma_max),
        rho=(rho, 0.1, 100.0),
    )
    ends = np.array([sigma_max, sigma_min]) ** (1 / rho)
    sigmas = np.linspace(ends[0], ends[1], steps) ** rho
    return np.append(sigmas, 0).astype(np.float32)


def flow_schedule(*, steps: int, sigma_max: float) -> np.ndarray:
    """Levels equally spaced in t = sigma / (1 + sigma) from sigma_max to zero: [steps + 1] float32.

    Rectified flow starts from pure noise, t = 1. Here it starts at sigma_max / (1 + sigma_max),
    0.999 for 999.
    """
    validate_ranges(steps=(steps, 1, _MAX_STEPS), sigma_max=(sigma_max, 1e-3, 1e5))
    t = np.linspace(sigma_max / (1 + sigma_max), 0, steps + 1)
    return (t / (1 - t)).astype(np.float32)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {"karras": karras_schedule, "flow": flow_schedule}


def make_schedule(*, name: str, **settings: Any) -> np.ndarray:
    """Returns the noise levels of the schedule `name`: decreasing, the last one zero.

    Raises:
      TypeError: an unknown or missing setting.
      ValueError: an unknown name or settings out of range; the message lists all of them.
    """
    return make_named(SCHEDULES, name, settings)


def make_named(
    factories: dict[str, Callable[..., Any]], name: str, settings: dict[str, Any]
) -> Any:
    """Calls the factory `name` with the settings."""
    if name not in factories:
        raise ValueError(f"name={name!r} must be one of {', '.join(factories)}")
    return factories[name](**settings)


def validate_ranges(**ranges: tuple[float, float, float]) -> None:
    """Raises ValueError that names every setting outside its range, given as (value, low, high)."""
    if errors := range_errors(ranges):
        raise ValueError("; ".join(errors))
