"""The inner loop: a few steps of gradient descent on latents, with the field fixed.

Training, evaluation and encoding share it. Its loss is the sum over cells of the mean squared error
of the cell, so that a learning rate has the same meaning for 1x1 and 32x32 grids. Deviation: Bauer et
al. 2023 use the mean over the image, whose gradient is i * j times smaller. With bilinear
interpolation, steps are taken in another basis (a deviation, see `inner_step`).

Source: Dupont et al. 2022, section 3.2 and appendix A; meta-SGD: Li et al. 2017.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functa.fields.field import Field, Params
from functa.fields.linearization import first_gradient
from functa.runtime.config import range_errors

LR_SHAPES = ("scalar", "channel", "cell", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """Settings of the inner loop.

    Attributes:
      steps: gradient steps.
      lr_shape: "scalar", "channel", "cell" or "full": the latents that share a learning rate.
      lr_per_step: whether each step has its own learning rates.
      initial_lr: initial learning rate times the curvature of the first step.
      min_lr, max_lr: bounds of the learning rates.
      second_order: whether outer gradients are taken through the inner gradients. If not, these are
        constants (first-order MAML), and so are all losses but the last.
      chunks: parts of the rows of cells, computed one after the other. Outer gradients compute each
        part again: the memory of one part for a third more time, and the same result to rounding.
        Values above 1 need the cell layout.
    Raises:
      ValueError: a value is out of range.
    """

    steps: int
    lr_shape: str
    lr_per_step: bool
    initial_lr: float
    min_lr: float
    max_lr: float
    second_order: bool
    chunks: int

    def __post_init__(self):
        problems = range_errors(
            {
                "inner_loop.steps": (self.steps, 1, 1000),
                "inner_loop.min_lr": (self.min_lr, 1e-12, 1e12),
                "inner_loop.max_lr": (self.max_lr, 1e-12, 1e12),
                "inner_loop.initial_lr": (self.initial_lr, 1e-12, 1e12),
            }
        )
        if not problems and self.min_lr >= self.max_lr:
            problems = [f"inner_loop.min_lr={self.min_lr} must be below max_lr={self.max_lr}"]
        if self.lr_shape not in LR_SHAPES:
            problems.append(
                f"inner_loop.lr_shape={self.lr_shape!r} is unknown; choose from {', '.join(LR_SHAPES)}"
            )
        if problems:
            raise ValueError("\n".join(problems))

    def lrs_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Shape of the learning rates: (steps or 1, i or 1, j or 1, d or 1)."""
        i, j, d = latent_shape
        shapes = {"scalar": (1, 1, 1), "channel": (1, 1, d), "cell": (i, j, 1), "full": (i, j, d)}
        return (self.steps if self.lr_per_step else 1, *shapes[self.lr_shape])


class Fit(NamedTuple):
    """Result of the inner loop.

    Attributes:
      latents: [b, i, j, d].
      values: [b, h, w, c] after the last step.
      losses: [steps + 1, b]; losses[s] is the mean squared error of each image before step s, the
        last one that after all steps.
    """

    latents: jax.Array
    values: jax.Array
    losses: jax.Array


def fit(
    field: Field,
    params: Params,
    log_inner_lrs: jax.Array,
    images: jax.Array,
    *,
    steps: int,
    second_order: bool,
    chunks: int = 1,
) -> Fit:
    """Fits latents to images, starting at zero.

    Args:
      params: of the field.
      log_inner_lrs: logarithm of the learning rates, of `InnerLoop.lrs_shape`, already clipped.
      images: [b, h, w, c] float32 in [0, 1], of the field's image_shape.
      steps, second_order, chunks: see InnerLoop.
    Raises:
      ValueError: `images` have another shape or dtype, or `chunks` does not suit the field.
    """
    if images.shape[1:] != field.image_shape or images.dtype != jnp.float32:
        raise ValueError(
            f"images are {images.dtype}{list(images.shape[1:])}, the field needs "
            f"float32{list(field.image_shape)}"
        )
    shape = field.image_shape[:2]
    targets = field.to_layout(images)
    inner_lrs = jnp.exp(log_inner_lrs)
    inner_lrs = jnp.broadcast_to(inner_lrs, (steps, *inner_lrs.shape[1:]))
    cell_size = field.cell_shape(shape)[0] * field.cell_shape(shape)[1] * field.image_shape[2]
    errors_of = _SquaredErrors(field, params, targets, chunks)

    gradient, errors = first_gradient(field, params, targets)
    losses = [errors]
    latents = jnp.zeros((len(images), *field.latent_shape), jnp.float32)
    for step in range(steps):
        if step:
            modulations, pullback = jax.vjp(lambda z: field.modulations(params, z), latents)
            errors, gradient = errors_of.value_and_gradient(modulations)
            (gradient,) = pullback(gradient / cell_size)
            losses.append(errors)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
            # This loss is only logged. Without stop_gradient XLA still computes its (zero) derivative.
            losses[-1] = jax.lax.stop_gradient(losses[-1])
        latents = inner_step(field, latents, inner_lrs[step][None], gradient)
    values, errors = errors_of.values(field.modulations(params, latents))
    losses.append(errors)
    return Fit(latents, field.to_image(values, shape), jnp.stack(losses) / images[0].size)


class _SquaredErrors:
    """Squared errors [b] of modulations [b, i, j, s, m], computed at once or in chunks of rows."""

    def __init__(self, field: Field, params: Params, targets: jax.Array, chunks: int):
        self._field, self._params, self._targets, self._chunks = field, params, targets, chunks
        self._shape = field.image_shape[:2]
        self._features = jnp.asarray(field.layout_features(self._shape))
        validate_chunks(field, chunks)

    def values(self, modulations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(values in the layout of the targets, squared errors [b])."""
        values, errors = self._map_chunks(self._chunk_errors, modulations)
        return _merge_chunks(values, self._targets.shape), jnp.sum(errors, axis=0)

    def value_and_gradient(self, modulations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(squared errors [b], the gradient of their sum with respect to the modulations)."""

        def chunk_gradient(modulations, targets, features):
            errors, pullback = jax.vjp(
                lambda m: self._chunk_errors(m, targets, features)[1], modulations
            )
            return errors, pullback(jnp.ones_like(errors))[0]

        errors, gradient = self._map_chunks(chunk_gradient, modulations)
        return jnp.sum(errors, axis=0), _merge_chunks(gradient, modulations.shape)

    def _chunk_errors(self, modulations, targets, features):
        modulations = self._field.interpolate(modulations, self._shape)
        values = self._field.evaluate(self._params, features, modulations)
        return values, jnp.sum(jnp.square(values - targets), axis=tuple(range(1, targets.ndim)))

    def _map_chunks(self, function: Callable, modulations: jax.Array) -> Any:
        """function(modulations, targets, features) of every chunk, stacked on a new leading axis."""
        if self._chunks == 1:
            whole = function(modulations, self._targets, self._features)
            return jax.tree.map(lambda result: result[None], whole)
        inputs = [
            _split_chunks(modulations, 1, self._chunks),
            _split_chunks(self._targets, 1, self._chunks),
        ]
        if self._features.ndim == 5:  # features differ between cells
            inputs.append(_split_chunks(self._features, 0, self._chunks))

        def call(chunk):
            return function(*chunk, *([self._features] if len(chunk) == 2 else []))

        # Inside a loop XLA cannot merge the recomputation with the first computation, which would
        # keep everything in memory.
        return jax.lax.map(jax.checkpoint(call), inputs)


def _split_chunks(grid: jax.Array, axis: int, chunks: int) -> jax.Array:
    shape = (*grid.shape[:axis], chunks, grid.shape[axis] // chunks, *grid.shape[axis + 1 :])
    return jnp.moveaxis(grid.reshape(shape), axis, 0)


def _merge_chunks(parts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.moveaxis(parts, 0, 1).reshape(shape)


def validate_chunks(field: Field, chunks: int) -> None:
    """Raises ValueError if the rows of cells cannot be computed in `chunks` parts."""
    rows = field.latent_shape[0]
    if chunks != 1 and not (1 < chunks <= rows and rows % chunks == 0):
        raise ValueError(
            f"inner_loop.chunks={chunks} must divide the {rows} rows of the latent grid"
        )
    if chunks != 1 and not field.has_cell_layout(field.image_shape[:2]):
        raise ValueError(f"inner_loop.chunks={chunks} needs field.interpolation=nearest")


def inner_step(
    field: Field, latents: jax.Array, inner_lrs: jax.Array, gradient: jax.Array
) -> jax.Array:
    """One step of gradient descent, in the basis in which interpolation is an isometry.

    For nearest interpolation that is the basis of the latents. Bilinear interpolation blurs: in the
    basis of the latents, a step that is stable for smooth patterns hardly changes the differences
    between neighboring cells (docs/STUDY.md).

    Args:
      latents, gradient: [b, i, j, d].
      inner_lrs: broadcast against them.
    """
    return latents - field.orthonormalize(inner_lrs * field.orthonormalize(gradient))
