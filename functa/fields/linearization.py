"""Linearization of the field at zero latents, where every example starts.

It gives the first inner step of all examples for the cost of one, and the curvature that decides
which inner learning rates are stable.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from functa.fields.field import Field, Params

_TINY = 1e-30
_POWER_ITERATIONS = 100
STABLE_RADIUS = 2.0  # of learning rate x curvature; above it gradient descent overshoots


class Linearization(NamedTuple):
    """The field at zero latents, shared by all examples.

    Attributes:
      values: [<layout>, c] without batch axis; without cell axes if all cells are alike.
      jvp: change of values for a change of latents, linear: [b, i, j, d] -> [b, <layout>, c].
    """

    values: jax.Array
    jvp: Callable[[jax.Array], jax.Array]


def linearize_at_zero(field: Field, params: Params) -> Linearization:
    """Linearizes the field with respect to its latents at zero latents."""
    shape = field.image_shape[:2]
    cells, m = field.has_cell_layout(shape), field.num_modulations
    features = jnp.asarray(field.layout_features(shape))
    zeros = jnp.zeros((1, *field.latent_shape), jnp.float32)
    modulations, map_jvp = jax.linearize(lambda z: field.modulations(params, z), zeros)
    modulations = field.interpolate(modulations, shape)[0]  # [i, j, s, 1, m] or [H, W, m]
    cell_axes = "ij" if features.ndim == 5 else ""
    if cells and not cell_axes:
        modulations = modulations[0, 0]
    modulations = jnp.broadcast_to(modulations, (*features.shape[:-1], m)).reshape(-1, m)
    points = features.reshape(-1, features.shape[-1])

    def point_value(modulations, features):
        return field.evaluate(params, features[None], modulations[None])[0]

    values = field.evaluate(params, points, modulations)
    jacobian = jax.vmap(jax.jacrev(point_value))(modulations, points)
    values = values.reshape(*features.shape[:-1], -1)
    jacobian = jacobian.reshape(*values.shape, m)

    def modulations_jvp(latents):  # -> [b, i, j, s, m]
        return jax.vmap(lambda example: map_jvp(example[None])[0])(latents)

    if not cells:
        return Linearization(
            values,
            lambda z: jnp.einsum(
                "bhwm,hwcm->bhwc", field.interpolate(modulations_jvp(z), shape), jacobian
            ),
        )
    if not field.is_linear:
        return Linearization(
            values,
            lambda z: jnp.einsum(f"bijsm,{cell_axes}sncm->bijsnc", modulations_jvp(z), jacobian),
        )
    # All sub-cells of a cell share the inputs of the map, which are fewer than its outputs m.
    weight = params["map"]["weight"].reshape(-1, field.upsampling**2, m)
    jacobian = jnp.einsum("...sncm,ksm->...snck", jacobian, weight)
    return Linearization(
        values,
        lambda z: jnp.einsum(f"bijk,{cell_axes}snck->bijsnc", field.map_inputs(z), jacobian),
    )


def first_gradient(field: Field, params: Params, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradient of the cell loss at zero latents, for the cost of one image.

    All examples start at the same latents, hence with the same values v and the same Jacobian J of
    values with respect to modulations. The gradient 2 J^T (v - target) is one contraction per example
    (and, in the pixel layout, one interpolation). It is exact: it differs from automatic
    differentiation by rounding, and so do its derivatives with respect to params.

    Args:
      targets: images in the layout of the field.
    Returns:
      (gradient [b, i, j, d], summed squared error of each example [b]).
    """
    at_zero = linearize_at_zero(field, params)
    values = at_zero.values
    residuals = values.reshape((1,) * (targets.ndim - values.ndim) + values.shape) - targets
    errors = jnp.sum(jnp.square(residuals), axis=tuple(range(1, targets.ndim)))
    return _cell_loss_gradient(field, at_zero, residuals), errors


def _cell_loss_gradient(field: Field, at_zero: Linearization, residuals: jax.Array) -> jax.Array:
    """Gradient of the cell loss [b, i, j, d] from residuals [b, <layout>, c] at zero latents."""
    p, q = field.cell_shape(field.image_shape[:2])
    latents = jax.ShapeDtypeStruct((len(residuals), *field.latent_shape), jnp.float32)
    (gradient,) = jax.linear_transpose(at_zero.jvp, latents)(residuals)
    return gradient * (2 / (p * q * field.image_shape[2]))


def spectral_radius(field: Field, params: Params, log_inner_lrs: jax.Array) -> jax.Array:
    """Largest eigenvalue of learning rates times Gauss-Newton matrix of the cell loss: [steps or 1].

    It is taken at zero latents, in the basis of inner_loop.inner_step. With learning rates of one it is the
    curvature. A step of gradient descent on a quadratic overshoots along directions with an
    eigenvalue above 2. Estimated, from below, by 100 power iterations.
    """
    at_zero = linearize_at_zero(field, params)
    root = jnp.exp(0.5 * log_inner_lrs)

    def norm(vectors):
        norms = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=(1, 2, 3)))
        return jnp.maximum(norms, _TINY)  # the radius of a field that ignores its latents is 0

    def iterate(_, carry):
        vectors, norms = carry
        vectors = vectors / norms.reshape(-1, 1, 1, 1)
        values = at_zero.jvp(field.orthonormalize(root * vectors))
        vectors = root * field.orthonormalize(_cell_loss_gradient(field, at_zero, values))
        return vectors, norm(vectors)

    first = jax.random.normal(jax.random.key(0), (len(log_inner_lrs), *field.latent_shape))
    return jax.lax.fori_loop(0, _POWER_ITERATIONS, iterate, (first, norm(first)))[1]
