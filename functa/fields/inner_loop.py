"""The inner loop: fits latents to images by a few steps of gradient descent, the field fixed.

Used unchanged by training, evaluation and encoding. Its loss is the sum over cells of the cell's
mean squared error, so that a rate means the same for 1x1 and 32x32 grids and for any batch
(deviation from Bauer et al. 2023, whose image mean makes a cell's gradient i*j times smaller); with
bilinear lookup it undoes the overlap of neighbouring cells (a deviation too, see `descend`).

Source: Dupont et al. 2022, section 3.2 and appendix A; meta-SGD: Li et al. 2017.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functa.fields.field import Field, Params

_TINY = 1e-30
_POWER_ITERATIONS = 100
STABLE_RADIUS = 2.0  # of rates x curvature: above it a step of gradient descent overshoots
LR_SHAPES = ("scalar", "channel", "cell", "full")


class Fit(NamedTuple):
    """latents [b, i, j, d]; values [b, h, w, c] after the last step; losses [steps + 1, b]:
    losses[s] is the mean squared error of each image before step s, the last one after all
    steps."""

    latents: jax.Array
    values: jax.Array
    losses: jax.Array


def lrs_shape(latent_shape: tuple[int, int, int], *, lr_shape: str, steps: int, lr_per_step: bool):
    """(steps or 1, i or 1, j or 1, d or 1): broadcasts against the latents of one step.

    Raises:
      ValueError: an unknown lr_shape.
    """
    i, j, d = latent_shape
    shapes = {"scalar": (1, 1, 1), "channel": (1, 1, d), "cell": (i, j, 1), "full": (i, j, d)}
    if lr_shape not in shapes:
        raise ValueError(f"inner_loop.lr_shape={lr_shape!r}: known are {', '.join(LR_SHAPES)}")
    return (steps if lr_per_step else 1, *shapes[lr_shape])


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
    """Fits latents, from zero, to whole images.

    Args:
      params: of the field.
      log_inner_lrs: natural logarithm of the rates, of `lrs_shape`, already clipped.
      images: [b, h, w, c] float32 in [0, 1], of the field's image_shape.
      steps: gradient steps, at least one.
      second_order: whether a derivative of the result by params runs through the inner gradients; if not they
        are constants (first-order MAML), and so are all losses but the last.
      chunks: rows of cells are worked on in so many parts, one after the other, and a derivative
        of the result computes each part again: memory for a part instead of for all, a third more
        time, the same numbers to rounding. Other than 1 only in the cell layout.
    Raises:
      ValueError: images of another shape or type.
    """
    if images.shape[1:] != field.image_shape or images.dtype != jnp.float32:
        raise ValueError(
            f"images are {images.dtype}{list(images.shape[1:])}, the field wants "
            f"float32{list(field.image_shape)}"
        )
    shape = field.image_shape[:2]
    targets = field.to_layout(images)
    rates = jnp.exp(log_inner_lrs)
    rates = jnp.broadcast_to(rates, (steps, *rates.shape[1:]))
    cell_size = field.cell_shape(shape)[0] * field.cell_shape(shape)[1] * field.image_shape[2]
    synthesise = _Synthesis(field, params, targets, chunks)

    gradient, errors = first_gradient(field, params, targets)
    losses = [errors]
    latents = jnp.zeros((len(images), *field.latent_shape), jnp.float32)
    for step in range(steps):
        if step:
            modulations, pull = jax.vjp(lambda z: field.modulations(params, z), latents)
            errors, by_modulations = synthesise.gradient(modulations)
            (gradient,) = pull(by_modulations / cell_size)
            losses.append(errors)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
            # What only the log sees: its derivative is zero, and was worked out all the same.
            losses[-1] = jax.lax.stop_gradient(losses[-1])
        latents = descend(field, latents, rates[step][None], gradient)
    values, errors = synthesise.values(field.modulations(params, latents))
    losses.append(errors)
    return Fit(latents, field.to_image(values, shape), jnp.stack(losses) / images[0].size)


class _Synthesis:
    """From modulations [b, i, j, s, m] to values in the layout of `targets`, and their squared errors
    [b]: all at once, or in parts of some rows of cells."""

    def __init__(self, field: Field, params: Params, targets: jax.Array, chunks: int):
        self._field, self._params, self._targets, self._chunks = field, params, targets, chunks
        self._shape = field.image_shape[:2]
        self._features = jnp.asarray(field.layout_features(self._shape))
        check_chunks(field, chunks)

    def values(self, modulations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(values, squared errors [b])."""
        values, errors = self._each_part(self._scored, modulations)
        return _joined(values, self._targets.shape), jnp.sum(errors, axis=0)

    def gradient(self, modulations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(squared errors [b], the derivative of their sum by the modulations)."""

        def part(modulations, targets, features):
            errors, pull = jax.vjp(lambda m: self._scored(m, targets, features)[1], modulations)
            return errors, pull(jnp.ones_like(errors))[0]

        errors, gradient = self._each_part(part, modulations)
        return jnp.sum(errors, axis=0), _joined(gradient, modulations.shape)

    def _scored(self, modulations, targets, features):
        at_points = self._field.look_up(modulations, self._shape)
        values = self._field.at_points(self._params, features, at_points)
        return values, jnp.sum(jnp.square(values - targets), axis=tuple(range(1, targets.ndim)))

    def _each_part(self, part: Callable, modulations: jax.Array) -> Any:
        """part(modulations, targets, features) of every part, along a new leading axis."""
        if self._chunks == 1:
            whole = part(modulations, self._targets, self._features)
            return jax.tree.map(lambda result: result[None], whole)
        parts = [_split(modulations, 1, self._chunks), _split(self._targets, 1, self._chunks)]
        if self._features.ndim == 5:  # not the same in all cells
            parts.append(_split(self._features, 0, self._chunks))

        def one(part_of):
            return part(*part_of, *([self._features] if len(part_of) == 2 else []))

        # The loop keeps compilers from seeing that what is computed again is what was computed
        # before, and from keeping it after all.
        return jax.lax.map(jax.checkpoint(one), parts)


def _split(grid: jax.Array, axis: int, chunks: int) -> jax.Array:
    shape = (*grid.shape[:axis], chunks, grid.shape[axis] // chunks, *grid.shape[axis + 1 :])
    return jnp.moveaxis(grid.reshape(shape), axis, 0)


def _joined(parts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.moveaxis(parts, 0, 1).reshape(shape)


def check_chunks(field: Field, chunks: int) -> None:
    """Raises ValueError where cells cannot be worked on in so many parts."""
    rows = field.latent_shape[0]
    if chunks != 1 and not (1 < chunks <= rows and rows % chunks == 0):
        raise ValueError(
            f"inner_loop.chunks={chunks} must divide the {rows} rows of the latent grid"
        )
    if chunks != 1 and not field.uses_cells(field.image_shape[:2]):
        raise ValueError(f"inner_loop.chunks={chunks}: parts of a field want lookup=nearest")


def descend(field: Field, latents: jax.Array, rates: jax.Array, gradient: jax.Array) -> jax.Array:
    """One step: plain gradient descent, taken in the basis that lookup leaves orthonormal.

    With `nearest` that is the latents' own. Bilinear lookup blurs, and in its own basis a step that
    is stable for what neighbouring cells share hardly moves what they differ by (docs/STUDY.md).

    Args:
      latents, gradient: [b, i, j, d]; rates: broadcast against them.
    """
    return latents - field.orthonormal(rates * field.orthonormal(gradient))


class _Start(NamedTuple):
    """The field at zero latents, the same for every example: values [<layout>, c] without batch and,
    where all cells see the same, without cells; push: how values move with latents, linear, [b, i, j,
    d] -> [b, <layout>, c]."""

    values: jax.Array
    push: Callable[[jax.Array], jax.Array]


def _start(field: Field, params: Params) -> _Start:
    shape = field.image_shape[:2]
    cells, m = field.uses_cells(shape), field.num_modulations
    features = jnp.asarray(field.layout_features(shape))
    zeros = jnp.zeros((1, *field.latent_shape), jnp.float32)
    modulations, move = jax.linearize(lambda z: field.modulations(params, z), zeros)
    modulations = field.look_up(modulations, shape)[0]  # [i, j, s, 1, m] or [H, W, m]
    places = "ij" if features.ndim == 5 else ""
    if cells and not places:
        modulations = modulations[0, 0]
    modulations = jnp.broadcast_to(modulations, (*features.shape[:-1], m)).reshape(-1, m)
    points = features.reshape(-1, features.shape[-1])

    def value(modulations, features):
        return field.at_points(params, features[None], modulations[None])[0]

    values = field.at_points(params, points, modulations)
    jacobian = jax.vmap(jax.jacrev(value))(modulations, points)
    values = values.reshape(*features.shape[:-1], -1)
    jacobian = jacobian.reshape(*values.shape, m)

    def moved(latents):  # modulations [b, i, j, s, m]
        return jax.vmap(lambda one: move(one[None])[0])(latents)

    if not cells:
        return _Start(
            values,
            lambda z: jnp.einsum("bhwm,hwcm->bhwc", field.look_up(moved(z), shape), jacobian),
        )
    if not field.is_linear:
        return _Start(
            values, lambda z: jnp.einsum(f"bijsm,{places}sncm->bijsnc", moved(z), jacobian)
        )
    # The sub-cells of a cell hear the same inputs of the map, so contract to those, not to m.
    weight = params["map"]["weight"].reshape(-1, field.upsampling**2, m)
    jacobian = jnp.einsum("...sncm,ksm->...snck", jacobian, weight)
    return _Start(
        values,
        lambda z: jnp.einsum(f"bijk,{places}snck->bijsnc", field.map_inputs(z), jacobian),
    )


def first_gradient(field: Field, params: Params, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradient of the cell loss at zero latents, exactly, at the price of one image.

    All examples start from the same latents, hence from the same values v and the same Jacobian J of values by
    modulations; the gradient 2 J^T (v - target) is one contraction an example (and, in the pixel layout, one
    lookup). Nothing is approximated: it
    differs from automatic differentiation by rounding, and so do its derivatives by params.

    Args:
      targets: images in the field's layout.
    Returns:
      (gradient [b, i, j, d], summed squared error of each example [b]).
    """
    start = _start(field, params)
    residuals = start.values.reshape((1,) * (targets.ndim - start.values.ndim) + start.values.shape)
    residuals = residuals - targets
    errors = jnp.sum(jnp.square(residuals), axis=tuple(range(1, targets.ndim)))
    return _pull(field, start, residuals), errors


def _pull(field: Field, start: _Start, at_points: jax.Array) -> jax.Array:
    """What the cell loss makes of residuals: 2 / (pixels and channels of a cell) times the transpose
    of push, [b, <layout>, c] -> [b, i, j, d]."""
    p, q = field.cell_shape(field.image_shape[:2])
    latents = jax.ShapeDtypeStruct((len(at_points), *field.latent_shape), jnp.float32)
    (gradient,) = jax.linear_transpose(start.push, latents)(at_points)
    return gradient * (2 / (p * q * field.image_shape[2]))


def spectral_radius(field: Field, params: Params, log_inner_lrs: jax.Array) -> jax.Array:
    """Largest eigenvalue of rates x Gauss-Newton matrix of the cell loss at zero latents, in the
    basis in which `fit` takes its steps, a number a set of rates: [steps or 1].

    With all rates one (log_inner_lrs zero) it is the curvature. A step of gradient descent on a
    quadratic overshoots, and leaves a larger loss than it found, along directions whose eigenvalue
    is above 2. Estimated, from below, by 100 power iterations in latent space.
    """
    start = _start(field, params)
    root = jnp.exp(0.5 * log_inner_lrs)

    def lengths(vectors):
        norms = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=(1, 2, 3)))
        return jnp.maximum(norms, _TINY)  # a field that hears no latents has radius 0

    def step(_, carry):
        vectors, norms = carry
        vectors = vectors / norms.reshape(-1, 1, 1, 1)
        values = start.push(field.orthonormal(root * vectors))
        vectors = root * field.orthonormal(_pull(field, start, values))
        return vectors, lengths(vectors)

    first = jax.random.normal(jax.random.key(0), (len(log_inner_lrs), *field.latent_shape))
    return jax.lax.fori_loop(0, _POWER_ITERATIONS, step, (first, lengths(first)))[1]
