"""The inner loop: fits latents to images by a few steps of gradient descent, the field fixed.

Used unchanged by training, evaluation and encoding. Its loss is the sum over cells of the cell's
mean squared error, so that a rate means the same for 1x1 and 32x32 grids and for any batch
(deviation from Bauer et al. 2023, whose image mean makes a cell's gradient i*j times smaller).

Source: Dupont et al. 2022, section 3.2 and appendix A; meta-SGD: Li et al. 2017.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from functa.field import Field, Params

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
) -> Fit:
    """Fits latents, from zero, to whole images.

    Args:
      params: of the field.
      log_inner_lrs: natural logarithm of the rates, of `lrs_shape`, already clipped.
      images: [b, h, w, c] float32 in [0, 1], of the field's image_shape.
      steps: gradient steps, at least one.
      second_order: whether a derivative of the result by params runs through the inner gradients; if not they
        are constants (first-order MAML).
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

    def cell_loss(latents):
        values = field.synthesise(params, field.modulations(params, latents), shape)
        errors = jnp.sum(jnp.square(values - targets), axis=tuple(range(1, targets.ndim)))
        return jnp.sum(errors) / cell_size, errors

    gradient, errors = first_gradient(field, params, targets)
    losses = [errors]
    latents = jnp.zeros((len(images), *field.latent_shape), jnp.float32)
    for step in range(steps):
        if step:
            gradient, errors = jax.grad(cell_loss, has_aux=True)(latents)
            losses.append(errors)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
        latents = latents - rates[step][None] * gradient
    values = field.synthesise(params, field.modulations(params, latents), shape)
    losses.append(jnp.sum(jnp.square(values - targets), axis=tuple(range(1, targets.ndim))))
    return Fit(latents, field.to_image(values, shape), jnp.stack(losses) / images[0].size)


def first_gradient(field: Field, params: Params, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradient of the cell loss at zero latents, exactly, at the price of one image.

    All examples start from the same latents, hence from the same values v and the same Jacobian J of values by
    modulations; the gradient 2 J^T (v - target) is one contraction an example. Nothing is approximated: it
    differs from automatic differentiation by rounding, and so do its derivatives by params.

    Args:
      targets: images in the field's layout.
    Returns:
      (gradient [b, i, j, d], summed squared error of each example [b]).
    """
    shape = field.image_shape[:2]
    i, j, d = field.latent_shape
    zeros = jnp.zeros((len(targets), i, j, d), jnp.float32)
    features = field.layout_features(shape)
    modulations = field.modulations(params, zeros[:1])[0, 0, 0]

    def value(modulations, features):
        return field.at_points(params, features[None], modulations[None])[0]

    points = jnp.asarray(features.reshape(-1, features.shape[-1]))
    values = field.at_points(params, points, modulations[None])
    jacobian = jax.vmap(jax.jacrev(value), (None, 0))(modulations, points)  # [points, c, m]
    if (
        field.map == "linear"
    ):  # lookup and a linear map commute, so contract to d channels, not to m
        jacobian = jacobian @ params["map"]["weight"].T
    c, k = jacobian.shape[1:]
    residuals = values.reshape(1, *features.shape[:-1], c)
    residuals = (
        residuals.reshape((1,) * (targets.ndim - residuals.ndim) + residuals.shape) - targets
    )
    jacobian = jacobian.reshape(*features.shape[:-1], c, k)
    if not field.uses_cells(shape):
        at_points = jnp.einsum("bhwc,hwck->bhwk", residuals, jacobian)
        grid = jax.ShapeDtypeStruct((len(targets), i, j, k), jnp.float32)
        (gradient,) = jax.linear_transpose(lambda u: field.look_up(u, shape), grid)(at_points)
    elif features.ndim == 2:
        gradient = jnp.einsum("bijnc,nck->bijk", residuals, jacobian)
    else:
        gradient = jnp.einsum("bijnc,ijnck->bijk", residuals, jacobian)
    if field.map != "linear":
        _, transpose = jax.vjp(lambda latents: field.modulations(params, latents), zeros)
        (gradient,) = transpose(gradient)
    p, q = field.cell_shape(shape)
    errors = jnp.sum(jnp.square(residuals), axis=tuple(range(1, targets.ndim)))
    return gradient * (2 / (p * q * c)), errors


def curvature(field: Field, params: Params, key: jax.Array, iterations: int = 30) -> jax.Array:
    """Largest eigenvalue of the Gauss-Newton matrix of the cell loss at zero latents, by power
    iteration.

    A single rate below 2 / curvature cannot overshoot the first step; 1 / curvature solves its stiffest direction.
    """
    shape = field.image_shape[:2]
    p, q = field.cell_shape(shape)
    scale = 2 / (p * q * field.image_shape[2])
    zeros = jnp.zeros((1, *field.latent_shape), jnp.float32)

    def values(latents):
        return field.synthesise(params, field.modulations(params, latents), shape)

    _, push = jax.linearize(values, zeros)
    pull = jax.linear_transpose(push, zeros)

    def step(_, carry):
        vector, _ = carry
        vector = scale * pull(push(vector))[0]
        norm = jnp.linalg.norm(vector.ravel())
        return vector / norm, norm

    start = jax.random.normal(key, zeros.shape)
    start = start / jnp.linalg.norm(start.ravel())
    return jax.lax.fori_loop(0, iterations, step, (start, jnp.float32(1)))[1]
