"""Outer optimisers behind one keyword-only function: optax's, and Muon with its steps on the Gram matrix.

`learning_rate` is what the update is multiplied by. Adam's update has entries of about 0.2 to 1;
LAMB's has the norm of the weights; Muon's (Jordan et al. 2024) has, for a matrix [n, m], equal
singular values of sqrt(max(1, m / n)), which moves what the matrix gives as much at every width
(Yang, Simon and Bernstein 2023, arXiv 2310.17813), and it is Adam for the rest.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from functa.runtime.config import range_errors

OPTIMIZERS = ("adam", "adamw", "lamb", "muon")
SCHEDULES = ("cosine", "constant", "exponential")
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: fastest rise at 0 in five steps
_NEWTON_SCHULZ_STEPS = 5


class Optimizer(NamedTuple):
    """transformation: of optax; learning_rate: step -> its learning rate, for logging."""

    transformation: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]


def make(
    *,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    end_fraction: float,
    weight_decay: float,
    clip_norm: float,
    steps: int,
    decay_mask: Callable[[Any], Any] | None = None,
) -> Optimizer:
    """Builds an optimiser.

    Args:
      name: "adam", "adamw", "lamb" or "muon".
      learning_rate: peak, reached linearly after `warmup_steps`.
      schedule: "cosine" and "exponential" fall to end_fraction * learning_rate at `steps`;
        "constant" stays.
      weight_decay: decoupled, times the learning rate; "adam" takes none.
      clip_norm: largest global norm of the gradient, 0 for none.
      steps: length of the whole run.
      decay_mask: params -> pytree of bool, what is decayed; None: everything.
    Raises:
      ValueError: an unknown name, or a weight decay that "adam" would ignore.
    """
    problems = range_errors(
        {
            "optimizer.learning_rate": (learning_rate, 1e-12, 1e6),
            "optimizer.end_fraction": (
                end_fraction,
                1e-12 if schedule == "exponential" else 0,
                1.0,
            ),
            "optimizer.weight_decay": (weight_decay, 0.0, 1e6),
            "optimizer.clip_norm": (clip_norm, 0.0, 1e12),
        }
    )
    if problems:
        raise ValueError("\n".join(problems))
    rate = make_schedule(
        learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        end_fraction=end_fraction,
        steps=steps,
    )
    if name == "adam":
        if weight_decay:
            raise ValueError(f"optimizer.weight_decay={weight_decay}: adam takes none; use adamw")
        transformation = optax.adam(rate)
    elif name == "adamw":
        transformation = optax.adamw(rate, weight_decay=weight_decay, mask=decay_mask)
    elif name == "lamb":
        transformation = optax.lamb(rate, weight_decay=weight_decay, mask=decay_mask)
    elif name == "muon":
        transformation = optax.chain(
            optax.partition(
                {
                    "matrix": optax.chain(optax.trace(0.95, nesterov=True), _muon_direction()),
                    "other": optax.scale_by_adam(nesterov=True),
                },
                lambda params: jax.tree.map(
                    lambda leaf: "matrix" if leaf.ndim == 2 else "other", params
                ),
            ),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(rate),
        )
    else:
        raise ValueError(f"optimizer.name={name!r}: known are {', '.join(OPTIMIZERS)}")
    if clip_norm:
        transformation = optax.chain(optax.clip_by_global_norm(clip_norm), transformation)
    return Optimizer(transformation, rate)


def make_schedule(
    learning_rate: float, *, schedule: str, warmup_steps: int, end_fraction: float, steps: int
) -> Callable[[Any], Any]:
    """step -> learning rate; linear warm-up from learning_rate / warmup_steps, then as `make` says.

    Raises:
      ValueError: an unknown schedule, or a warm-up as long as the run.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup_steps} must be at least 0 and below steps={steps}"
        )
    if schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={schedule!r}: known are {', '.join(SCHEDULES)}")
    rest = steps - warmup_steps

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)
        if schedule == "cosine":
            factor = end_fraction + (1 - end_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif schedule == "exponential":
            factor = jnp.float32(end_fraction) ** done
        else:
            factor = jnp.float32(1)
        warm = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
        return learning_rate * warm * factor

    return rate


def orthogonalize(matrix: jax.Array) -> jax.Array:
    """The nearest matrix with equal singular values, roughly: [n, m] -> [n, m], about 0.7 to 1.2.

    Muon's five steps of X <- (a + b XX' + c (XX')^2) X (Jordan et al. 2024) all multiply from the
    left by polynomials of one Gram matrix, so they are taken on that and X is multiplied once, at
    the end: for the wide matrices of a modulation map two to six times faster (docs/STUDY.md,
    "Muon on the Gram matrix"), and the same up to rounding. That has to be float32's: with less,
    errors below zero grow twelvefold a step.
    """
    largest = jnp.max(jnp.abs(matrix))
    # Squares of what is above 1e19 or below 1e-19 would leave float32's range.
    scaled = matrix / jnp.where(largest > 0, largest, 1)
    wide = scaled if matrix.shape[0] <= matrix.shape[1] else scaled.T
    times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    gram = times(wide, wide.T)
    squared_norm = jnp.maximum(jnp.trace(gram), 1)  # of a matrix of zeros it is 0, else above 1
    gram = gram / squared_norm
    norm = largest * jnp.sqrt(squared_norm)
    first, second, third = _NEWTON_SCHULZ
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    factors = []
    for _ in range(_NEWTON_SCHULZ_STEPS):
        factor = first * identity + second * gram + third * times(gram, gram)
        factors.append(factor)
        gram = times(gram, times(factor, factor))  # of the matrix that the factor has multiplied
    result = times(functools.reduce(times, factors), wide) / jnp.sqrt(squared_norm)
    result *= norm / (norm + 1e-8)  # as in optax: rounding errors around zero are no direction
    return result if wide is scaled else result.T


def _muon_direction() -> optax.GradientTransformation:
    def direction(matrix):
        n, m = matrix.shape
        return max(1.0, m / n) ** 0.5 * orthogonalize(matrix)

    return optax.stateless_with_tree_map(lambda matrix, _: direction(matrix))


def scaled(multipliers: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies the updates, and so learning rates, by multipliers(params), a pytree of numbers; after `make`."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("scaled needs the params")
        return jax.tree.map(lambda u, factor: factor * u, updates, multipliers(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clamp(low: float, high: float) -> optax.GradientTransformation:
    """Changes the updates so that params + updates stay within [low, high]; the last of a chain."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("clamp needs the params")
        updates = jax.tree.map(lambda u, p: jnp.clip(p + u, low, high) - p, updates, params)
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
