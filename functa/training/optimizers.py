"""Outer-loop optimizers: Optax's, and Muon with Newton-Schulz iterations on the Gram matrix.

The learning rate multiplies the update of each optimizer. Adam's update has entries of about 0.2 to
1. LAMB's has the norm of the weights. Muon's (Jordan et al. 2024) has, for a matrix [n, m], equal
singular values of sqrt(max(1, m / n)), so that it changes the outputs of the matrix equally at every
width (Yang, Simon and Bernstein 2023, arXiv 2310.17813); all other parameters use Adam.
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
# Jordan et al. 2024: the steepest polynomial at 0 that converges in five steps.
_NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Optimizer(NamedTuple):
    """An Optax transformation and its learning rate schedule.

    Attributes:
      transformation: gradients -> updates.
      learning_rate: step -> learning rate, for logging.
    """

    transformation: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]

    def followed_by(self, transformation: optax.GradientTransformation) -> "Optimizer":
        """The optimizer with `transformation` applied to its updates."""
        return self._replace(transformation=optax.chain(self.transformation, transformation))


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
    """Builds an optimizer.

    Args:
      name: "adam", "adamw", "lamb" or "muon".
      learning_rate: peak value, reached after a linear warm-up of `warmup_steps`.
      schedule: "cosine" and "exponential" decay to end_fraction * learning_rate at `steps`;
        "constant" does not decay.
      weight_decay: decoupled, multiplied by the learning rate; must be 0 for "adam".
      clip_norm: maximum global norm of the gradient; 0 disables clipping.
      steps: length of the run.
      decay_mask: params -> pytree of bool that selects the parameters to decay; None selects all.
    Raises:
      ValueError: a setting is unknown or out of range; lists all values out of range.
    """
    min_fraction = 1e-12 if schedule == "exponential" else 0.0
    problems = range_errors(
        {
            "optimizer.learning_rate": (learning_rate, 1e-12, 1e6),
            "optimizer.end_fraction": (end_fraction, min_fraction, 1.0),
            "optimizer.weight_decay": (weight_decay, 0.0, 1e6),
            "optimizer.clip_norm": (clip_norm, 0.0, 1e12),
        }
    )
    if problems:
        raise ValueError("\n".join(problems))
    schedule_fn = make_schedule(
        learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        end_fraction=end_fraction,
        steps=steps,
    )
    if name == "adam":
        if weight_decay:
            raise ValueError(
                f"optimizer.weight_decay={weight_decay}: adam has no weight decay; use adamw"
            )
        transformation = optax.adam(schedule_fn)
    elif name == "adamw":
        transformation = optax.adamw(schedule_fn, weight_decay=weight_decay, mask=decay_mask)
    elif name == "lamb":
        transformation = optax.lamb(schedule_fn, weight_decay=weight_decay, mask=decay_mask)
    elif name == "muon":
        directions = {
            "matrix": optax.chain(
                optax.trace(0.95, nesterov=True),
                optax.stateless_with_tree_map(lambda matrix, _: _muon_direction(matrix)),
            ),
            "other": optax.scale_by_adam(nesterov=True),
        }
        transformation = optax.chain(
            optax.partition(directions, _muon_labels),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule_fn),
        )
    else:
        raise ValueError(f"optimizer.name={name!r}: choose from {', '.join(OPTIMIZERS)}")
    if clip_norm:
        transformation = optax.chain(optax.clip_by_global_norm(clip_norm), transformation)
    return Optimizer(transformation, schedule_fn)


def make_schedule(
    learning_rate: float, *, schedule: str, warmup_steps: int, end_fraction: float, steps: int
) -> Callable[[Any], Any]:
    """Returns step -> learning rate: a linear warm-up from learning_rate / warmup_steps, then decay.

    Raises:
      ValueError: the schedule is unknown, or the warm-up is not shorter than the run.
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup_steps} must be at least 0 and below steps={steps}"
        )
    if schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={schedule!r}: choose from {', '.join(SCHEDULES)}")

    def learning_rate_at(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
        if schedule == "cosine":
            decay = end_fraction + (1 - end_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif schedule == "exponential":
            decay = jnp.float32(end_fraction) ** progress
        else:
            decay = jnp.float32(1)
        warmup = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
        return learning_rate * warmup * decay

    return learning_rate_at


def orthogonalize(matrix: jax.Array) -> jax.Array:
    """Approximately the nearest matrix with equal singular values, which come out between 0.7 and 1.2.

    Muon's five Newton-Schulz steps X <- (a + b XX^T + c (XX^T)^2) X are polynomials of one Gram
    matrix, multiplied from the left. They are computed on the Gram matrix, and X is multiplied once
    at the end. For the wide matrices of modulation maps this is two to six times faster
    (docs/STUDY.md, "Muon on the Gram matrix"), and equal up to rounding. It needs full float32
    precision: negative rounding errors grow twelvefold per step.

    Args:
      matrix: [n, m] float32.
    Returns:
      [n, m] float32; zeros for a matrix of zeros.
    Source: Jordan et al. 2024.
    """
    largest = jnp.max(jnp.abs(matrix))
    # Without scaling, squares of entries above 1e19 or below 1e-19 leave the range of float32.
    scaled = matrix / jnp.where(largest > 0, largest, 1)
    wide = scaled if matrix.shape[0] <= matrix.shape[1] else scaled.T
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    gram = matmul(wide, wide.T)
    squared_norm = jnp.maximum(jnp.trace(gram), 1)  # at least 1 unless the matrix is zero
    gram = gram / squared_norm
    norm = largest * jnp.sqrt(squared_norm)
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    factors = []
    for _ in range(_NEWTON_SCHULZ_STEPS):
        factor = a * identity + b * gram + c * matmul(gram, gram)
        factors.append(factor)
        gram = matmul(gram, matmul(factor, factor))  # Gram matrix of factor @ X
    result = matmul(functools.reduce(matmul, factors), wide) / jnp.sqrt(squared_norm)
    result *= norm / (norm + 1e-8)  # suppress directions of near-zero gradients, as Optax does
    return result if wide is scaled else result.T


def _muon_labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "other", params)


def _muon_direction(matrix: jax.Array) -> jax.Array:
    n, m = matrix.shape
    return max(1.0, m / n) ** 0.5 * orthogonalize(matrix)


def scale_updates(multipliers: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies updates by multipliers(params), a pytree of numbers: learning rates per parameter."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(jnp.multiply, updates, multipliers(params))
    )


def clip_params(low: float, high: float) -> optax.GradientTransformation:
    """Changes updates so that params + updates lie in [low, high]; must be the last of a chain."""
    return optax.stateless_with_tree_map(
        lambda update, param: optax.projections.projection_box(param + update, low, high) - param
    )
