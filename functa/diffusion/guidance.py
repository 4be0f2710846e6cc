"""Classifier-free guidance of a denoiser."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functa.diffusion.parameterization import Denoiser
from functa.diffusion.schedules import validate_ranges

MAX_SCALE = 1e3


class Guidance(NamedTuple):
    """scale: see `guide`; interval: (lowest, highest) sigma at which guidance acts, both included."""

    scale: float
    interval: tuple[float, float]


def make_guidance(*, scale: float, interval: tuple[float, float]) -> Guidance:
    """Returns the checked settings.

    Raises:
      ValueError: values out of range; the message lists all of them.
    """
    low, high = interval
    limits = {"interval[1]": (high, 0.0, 1e6), "interval[0]": (low, 0.0, high)}
    validate_ranges(scale=(scale, 0.0, MAX_SCALE), **limits)
    return Guidance(scale, (low, high))


def guide(
    denoise: Denoiser, *, null_class: int, scale: Any, interval: tuple[float, float]
) -> Denoiser:
    """Returns unconditional + scale * (conditional - unconditional) inside an interval of sigma.

    Outside the interval the result is the conditional denoiser, and the unconditional one is not
    evaluated.

    Args:
      null_class: the label that stands for an unknown class.
      scale: 0 is the unconditional denoiser, 1 the conditional one, at the cost of one evaluation. A
        traced scalar lets one program serve all scales; its cost does not depend on the scale.
      interval: (lowest, highest) sigma, both included.
    Source: Ho and Salimans 2022, equation 6; Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """
    low, high = interval
    if not isinstance(scale, jax.Array) and scale == 1:
        return denoise

    def guided_denoise(noisy: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
        is_inside = (low <= sigma) & (sigma <= high)
        conditional = denoise(noisy, sigma, labels)

        def extrapolate(conditional):
            unconditional = denoise(noisy, sigma, jnp.full_like(labels, null_class))
            guided = unconditional + scale * (conditional - unconditional)
            return jnp.where(is_inside[:, None, None, None], guided, conditional)

        return jax.lax.cond(jnp.any(is_inside), extrapolate, lambda c: c, conditional)

    return guided_denoise
