"""How well latents are fitted: more and fewer inner steps, and how far the field would go."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from functa.evaluation.analysis.table import Column, Table
from functa.evaluation.analysis.trained_field import Subject, cell_loss, mean_psnr, scores
from functa.fields import inner_loop
from functa.fields.field import Field
from functa.fields.pixels import to_float

FREE_STEPS = 300
_FREE_RATE = 0.05  # first step of Adam, in standard deviations of the channel
_SCORES = (
    Column("psnr", "dB", "mean over images of each image's PSNR"),
    Column("psnr_of_mean_mse", "dB", "PSNR of the mean error, the other convention"),
)


def continue_steps(
    field: Field, params: Any, log_inner_lrs, images, latents, *, steps: int
) -> jax.Array:
    """Goes on with the inner loop, the rates of the last trained step repeated.

    Args:
      params: of the field.
      log_inner_lrs: of inner_loop.lrs_shape.
      images: [b, h, w, c] float32; latents [b, i, j, d] float32, where to go on from.
      steps: at least 1.
    Returns:
      [b, steps] float32, the mean squared error of each image after each of these steps.
    """
    rates = jnp.exp(log_inner_lrs[-1])[None]
    loss = jax.value_and_grad(
        lambda latents: cell_loss(field, params, latents, images), has_aux=True
    )

    def step(carry, _):
        latents, gradient = carry
        latents = inner_loop.inner_step(field, latents, rates, gradient)
        (_, errors), gradient = loss(latents)
        return (latents, gradient), errors

    _, errors = jax.lax.scan(step, (latents, loss(latents)[1]), length=steps)
    return errors.T


def refine(field: Field, params: Any, unit, images, latents, *, steps: int) -> jax.Array:
    """Lets latents go where they want by Adam, its rate falling to zero as a cosine.

    Args:
      params: of the field.
      unit: [d] float32, what a step of each channel is measured in.
      images: [b, h, w, c] float32; latents [b, i, j, d] float32, where to begin.
    Returns:
      [b] float32, the least mean squared error of each image on the way, the beginning included.
    """
    adam = optax.scale_by_adam()
    loss = jax.grad(lambda latents: cell_loss(field, params, latents, images), has_aux=True)
    rates = _FREE_RATE * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))

    def step(carry, rate):
        latents, state, least = carry
        gradient, errors = loss(latents)
        update, state = adam.update(gradient, state)
        least = jnp.fmin(least, errors)  # a step that went astray does not count
        return (latents - rate * unit[None, None, None] * update, state, least), None

    start = (latents, adam.init(latents), jnp.full(len(images), jnp.inf, jnp.float32))
    (latents, _, least), _ = jax.lax.scan(step, start, jnp.asarray(rates, jnp.float32))
    return jnp.fmin(least, cell_loss(field, params, latents, images)[1])


def steps(subject: Subject) -> dict[str, Table]:
    """PSNR after 0, 1, 2, ... inner steps, up to three times the trained number and to 100."""
    trained = subject.config.inner_loop.steps
    further = {trained + 1, 2 * trained, 3 * trained, 10, 30, 100}
    more = sorted(count for count in further if count > trained)

    @jax.jit
    def go_on(images, latents):
        images = to_float(images)
        field, params = subject.field, subject.params
        log_lrs = params["log_inner_lrs"]
        return continue_steps(
            field, params["field"], log_lrs, images, latents, steps=more[-1] - trained
        )

    beyond = subject.in_batches(go_on, subject.images, subject.fitted.latents)
    mse = np.concatenate([subject.fitted.mse, beyond], axis=1)
    there = mse[:, trained]
    rows = []
    for count in [*range(trained + 1), *more]:
        row = {"steps": count, **scores(mse[:, count])}
        row["gain"] = row["psnr"] - mean_psnr(there)
        rows.append(row | {"worse": float(np.mean(~(mse[:, count] <= there)))})
    columns = (
        Column("steps", "", "inner steps from zero latents"),
        *_SCORES,
        Column("gain", "dB", f"psnr less that of {trained} steps"),
        Column("worse", "%", f"images that are worse than after {trained} steps"),
    )
    note = f"The field was trained for {trained} steps; later ones repeat the rates of the last."
    return {"steps": Table("PSNR by inner steps", note, len(mse), columns, rows)}


def free(subject: Subject) -> dict[str, Table]:
    """PSNR of latents that Adam refines from those of the inner loop."""

    unit = jnp.asarray(subject.channel_std)

    @jax.jit
    def refine_batch(images, latents):
        images = to_float(images)
        field, params = subject.field, subject.params["field"]
        return refine(field, params, unit, images, latents, steps=FREE_STEPS)

    least = subject.in_batches(refine_batch, subject.images, subject.fitted.latents)
    fitted = scores(subject.fitted.mse[:, -1])
    rows = []
    for name, found in (("inner loop", fitted), (f"{FREE_STEPS} steps of Adam", scores(least))):
        rows.append({"latents": name, **found, "gain": found["psnr"] - fitted["psnr"]})
    columns = (
        Column("latents", "", "how they were found"),
        *_SCORES,
        Column("gain", "dB", "psnr less that of the inner loop"),
    )
    note = (
        "Latents refined by Adam from those of the inner loop, the field fixed; of each image the "
        "best on the way. What is gained is the inner loop's to gain; what is still missing is the "
        "field's."
    )
    return {"free": Table("Free latents", note, len(least), columns, rows)}
