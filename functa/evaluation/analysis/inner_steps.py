"""How PSNR depends on the fit: more or fewer inner steps, and latents optimized by Adam."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functa.evaluation.analysis.table import PSNR_COLUMNS, Column, Table
from functa.evaluation.analysis.trained_field import TrainedField, mean_psnr, psnr_metrics
from functa.fields import inner_loop
from functa.fields.field import Field

ADAM_STEPS = 300
_ADAM_LEARNING_RATE = 0.05  # in standard deviations of the channel


def inner_steps(trained_field: TrainedField) -> dict[str, Table]:
    """PSNR after 0, 1, 2, ... inner steps, up to three times the trained number and up to 100."""
    fitted, field, params = trained_field.fitted, trained_field.field, trained_field.params
    trained = fitted.mse.shape[1] - 1
    further = {trained + 1, 2 * trained, 3 * trained, 10, 30, 100}
    more = sorted(count for count in further if count > trained)
    extra = more[-1] - trained

    @jax.jit
    def extend(images, latents):
        return continue_inner_loop(field, params, images, latents, steps=extra)

    further_mse = trained_field.in_batches(extend, trained_field.targets, fitted.latents)
    mse = np.concatenate([fitted.mse, further_mse], axis=1)
    trained_mse = mse[:, trained]
    rows = []
    for count in [*range(trained + 1), *more]:
        row = {"steps": count, **psnr_metrics(mse[:, count])}
        row["gain"] = row["psnr"] - mean_psnr(trained_mse)
        rows.append(row | {"worse": float(np.mean(~(mse[:, count] <= trained_mse)))})
    columns = (
        Column("steps", "", "inner steps from zero latents"),
        *PSNR_COLUMNS,
        Column("gain", "dB", f"psnr minus that of {trained} steps"),
        Column("worse", "%", f"images with a lower PSNR than after {trained} steps"),
    )
    note = (
        f"The field was trained with {trained} inner steps. Further steps repeat the learning rates of "
        "the last one."
    )
    return {"steps": Table("PSNR by inner steps", note, len(mse), columns, rows)}


def continue_inner_loop(
    field: Field, params: Any, images: jax.Array, latents: jax.Array, *, steps: int
) -> jax.Array:
    """Continues the inner loop with the learning rates of the last trained step.

    Args:
      params: {"field", "log_inner_lrs"}.
      images: [b, h, w, c] float32; latents: [b, i, j, d] float32 to start from.
      steps: at least 1.
    Returns:
      Mean squared error of each image after each step, [b, steps] float32.
    """
    inner_lrs = jnp.exp(params["log_inner_lrs"][-1])[None]
    loss = jax.value_and_grad(
        lambda latents: _cell_loss(field, params["field"], latents, images), has_aux=True
    )

    def step(carry, _):
        latents, gradient = carry
        latents = inner_loop.inner_step(field, latents, inner_lrs, gradient)
        (_, errors), gradient = loss(latents)
        return (latents, gradient), errors

    _, errors = jax.lax.scan(step, (latents, loss(latents)[1]), length=steps)
    return errors.T


def free_latents(trained_field: TrainedField) -> dict[str, Table]:
    """PSNR of latents that Adam optimizes, starting from those of the inner loop."""
    fitted, unit = trained_field.fitted, jnp.asarray(trained_field.channel_std)
    field, params = trained_field.field, trained_field.params["field"]

    @jax.jit
    def optimize(images, latents):
        return optimize_latents(field, params, unit, images, latents, steps=ADAM_STEPS)

    optimized_mse = trained_field.in_batches(optimize, trained_field.targets, fitted.latents)
    inner_mse = fitted.mse[:, -1]
    errors = {"inner loop": inner_mse, f"{ADAM_STEPS} steps of Adam": optimized_mse}
    rows = [
        {"latents": name, **psnr_metrics(mse), "gain": mean_psnr(mse) - mean_psnr(inner_mse)}
        for name, mse in errors.items()
    ]
    columns = (
        Column("latents", "", "method that fits the latents"),
        *PSNR_COLUMNS,
        Column("gain", "dB", "psnr minus that of the inner loop"),
    )
    note = (
        "Adam optimizes the latents of the inner loop with the field fixed; the best latents of each "
        "image count. The gain is what a better inner loop could reach. The remaining error is due "
        "to the field."
    )
    return {"free": Table("Free latents", note, len(optimized_mse), columns, rows)}


def optimize_latents(
    field: Field, params: Any, unit: jax.Array, images: jax.Array, latents: jax.Array, *, steps: int
) -> jax.Array:
    """Optimizes latents by Adam, with a cosine schedule of the learning rate.

    Args:
      params: parameters of the field.
      unit: [d] float32, unit of the learning rate for each channel.
      images: [b, h, w, c] float32; latents: [b, i, j, d] float32 to start from.
    Returns:
      Smallest mean squared error of each image, at the start or after any step: [b] float32.
    """
    adam, unit = optax.scale_by_adam(), unit[None, None, None]
    learning_rates = _ADAM_LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    gradient_of = jax.grad(lambda latents: _cell_loss(field, params, latents, images), has_aux=True)

    def step(carry, learning_rate):
        latents, state, best = carry
        gradient, errors = gradient_of(latents)
        update, state = adam.update(gradient, state)
        best = jnp.fmin(best, errors)  # ignores NaN of a diverged step
        return (latents - learning_rate * unit * update, state, best), None

    start = (latents, adam.init(latents), jnp.full(len(images), jnp.inf, jnp.float32))
    (latents, _, best), _ = jax.lax.scan(step, start, learning_rates.astype(np.float32))
    return jnp.fmin(best, _cell_loss(field, params, latents, images)[1])


def _cell_loss(
    field: Field, params: Any, latents: jax.Array, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss of the inner loop and the mean squared error [b] of images [b, h, w, c]."""
    errors = jnp.mean(jnp.square(field(params, latents) - images), axis=(1, 2, 3))
    i, j, _ = field.latent_shape
    return jnp.sum(errors) * (i * j), errors
