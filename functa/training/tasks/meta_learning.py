"""The meta_learn task: trains the field and the inner learning rates to fit any image in a few steps.

The outer loss is the mean squared error after the last inner step ("mse": Dupont et al. 2022,
algorithm 1; Bauer et al. 2023, section 3), or the mean over images of its logarithm ("log_mse"), which
is proportional to minus the mean PSNR. With "mse" a few detailed images dominate the gradient of a
batch (docs/STUDY.md, "The outer loss").
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from functa.data.images import ImageSource
from functa.fields import image_parts, inner_loop, linearization
from functa.fields.field import Field
from functa.fields.fitter import Fitter
from functa.fields.pixels import to_float
from functa.fields.psnr import psnr
from functa.training import optimizers
from functa.training.tasks import Illustrations

LOSSES = ("mse", "log_mse")
_MIN_MSE = 1e-6  # 60 dB: images fitted better than that get no gradient
_SHOWN_IMAGES = 8
_MAX_HEALTHY_RADIUS = 10.0  # of learning rates x curvature; the largest of a healthy run was 5.9


def train_field(settings: ConfigDict, fitter: Fitter) -> Field:
    """The field as training sees it: of windows if random cells are trained on, else the whole field.

    Args:
      settings: config.meta_learn.
    Raises:
      ValueError: the field cannot be trained on windows.
    """
    if not settings.cells_per_image:
        return fitter.field
    if fitter.inner_loop.lr_shape in ("cell", "full"):
        raise ValueError(
            f"inner_loop.lr_shape={fitter.inner_loop.lr_shape} has a rate for every cell and cannot be trained on "
            "random cells: set meta_learn.cells_per_image=0 or inner_loop.lr_shape=channel"
        )
    return image_parts.window_field(fitter.field, settings.window)


def local_field(settings: ConfigDict, fitter: Fitter, row_shards: int) -> Field:
    """The part of `train_field` that a device computes; `row_shards` devices share an image.

    Raises:
      ValueError: images cannot be shared in this way.
    """
    if row_shards != 1 and settings.cells_per_image:
        raise ValueError(
            f"mesh.cell={row_shards} shards the rows of whole images: set meta_learn.cells_per_image=0 or mesh.cell=1"
        )
    field = image_parts.shard_rows(train_field(settings, fitter), row_shards)
    if field is not fitter.field and not settings.cells_per_image:
        inner_loop.validate_chunks(field, fitter.inner_loop.chunks)
    return field


def draw(settings: ConfigDict, field: Field, batch: Any, key: jax.Array) -> jax.Array:
    """Images of a training batch, or random windows of cells: [b, h, w, c] float32 in [0, 1].

    With settings.flips, each is mirrored with probability one half."""
    cell_key, flip_key = jax.random.split(key)
    images = batch["image"]
    if settings.cells_per_image:
        images = image_parts.random_windows(
            cell_key, images, field, cells=settings.cells_per_image, side=settings.window
        )
    images = to_float(images)
    return random_flips(flip_key, images) if settings.flips else images


def loss(
    settings: ConfigDict,
    loop: inner_loop.InnerLoop,
    field: Field,
    params: Any,
    images: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Outer loss of images or windows [b, h, w, c], and values to log.

    Args:
      field: that a device computes, see `local_field`.
    """
    result = inner_loop.fit(
        field,
        params["field"],
        image_parts.local_inner_lrs(field, params["log_inner_lrs"]),
        images,
        steps=loop.steps,
        second_order=loop.second_order,
        chunks=1 if settings.cells_per_image else loop.chunks,
    )
    inner_losses = jnp.mean(result.losses, axis=1)
    lrs = jnp.exp(params["log_inner_lrs"])
    logs = {f"inner_loss_{step}": value for step, value in enumerate(inner_losses)}
    logs |= {"inner_lr_mean": lrs.mean(), "inner_lr_min": lrs.min(), "inner_lr_max": lrs.max()}
    if settings.loss == "mse":
        return inner_losses[-1], logs
    windows = settings.cells_per_image // settings.window**2 or 1
    mse = jnp.mean(result.losses[-1].reshape(-1, windows), axis=1)
    mse = image_parts.image_mean(field, mse)
    return jnp.mean(jnp.log(mse + _MIN_MSE)), logs


def headline(settings: ConfigDict, scalars: dict[str, float]) -> str:
    """PSNR of a training batch: the mean over images with the loss log_mse, else of the mean error."""
    mse = np.exp(scalars["loss"]) if settings.loss == "log_mse" else scalars["loss"]
    return f"training PSNR {psnr(np.float64(mse)):.2f} dB"


def evaluate(fitter: Fitter, params: Any, batch: Any) -> dict[str, jax.Array]:
    """Mean squared error and PSNR of each image [b] after the inner loop."""
    mse = fitter.fit(params, to_float(batch["image"])).losses[-1]
    return {"mse": mse, "psnr": psnr(mse)}


def make_optimizer(settings: ConfigDict) -> optimizers.Optimizer:
    """The optimizer of config.meta_learn."""
    return optimizers.make(**settings.optimizer, steps=settings.steps, decay_mask=decay_mask)


def clip_inner_lrs(low: float, high: float) -> optax.GradientTransformation:
    """Keeps inner learning rates in [low, high]; must be the last of a chain."""
    clip = optimizers.clip_params(np.log(low), np.log(high))

    def update(updates, state, params=None):
        name = "log_inner_lrs"
        clipped, _ = clip.update(updates[name], optax.EmptyState(), params[name])
        return updates | {name: clipped}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_mask(params: Any) -> Any:
    """Weight decay applies to matrices of the field, not to biases or inner learning rates."""
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params["field"])
    return {"field": matrices, "log_inner_lrs": False}


def validate_settings(settings: ConfigDict, latent_shape: tuple[int, ...]) -> list[str]:
    """Problems of config.meta_learn but its optimizer, one line each."""
    problems = []
    if settings.loss not in LOSSES:
        problems.append(
            f"meta_learn.loss={settings.loss!r} is unknown; choose from {', '.join(LOSSES)}"
        )
    cells, side, (i, j, _) = settings.cells_per_image, settings.window, latent_shape
    if not 0 <= cells <= i * j:
        problems.append(
            f"meta_learn.cells_per_image={cells} must be from 0 to {i * j}, the cells of a {i}x{j} grid"
        )
    if side < 1 or cells % side**2:
        problems.append(
            f"meta_learn.cells_per_image={cells} must be a multiple of the {side**2} cells of a window "
            f"(meta_learn.window={side})"
        )
    return problems


def random_flips(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flips each image or window [b, h, w, c] at random, along each of the two axes."""
    upside_down, left_right = jax.random.bernoulli(key, 0.5, (2, len(images), 1, 1, 1))
    images = jnp.where(upside_down, images[:, ::-1], images)
    return jnp.where(left_right, images[:, :, ::-1], images)


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a split, in dB, from the rows of `evaluate`."""
    return {
        "psnr": float(rows["psnr"].mean(dtype=np.float64)),
        "psnr_of_mean_mse": float(psnr(rows["mse"].mean(dtype=np.float64))),
    }


def make_monitor(field: Field) -> Callable[[Any], tuple[dict[str, float], str]]:
    """Returns a function that measures the stability of the inner loop and warns before it diverges.

    It is a coarse test. Before a run diverges, learning rates x curvature usually grows tenfold
    within some ten steps, but not always (docs/STUDY.md).
    """

    @jax.jit
    def measure(params):
        return linearization.spectral_radius(field, params["field"], params["log_inner_lrs"])

    def monitor(params):
        radii = np.asarray(measure(params)).tolist()
        scalars = {f"inner_radius_{step}": radius for step, radius in enumerate(radii)}
        if max(radii) <= _MAX_HEALTHY_RADIUS:
            return scalars, ""
        return scalars, (
            f"the inner loop is close to instability: learning rates x curvature is {max(radii):.3g}, "
            f"healthy runs stay below {_MAX_HEALTHY_RADIUS:g}. Lower meta_learn.optimizer.learning_rate"
        )

    return monitor


def illustrate(fit: Callable, validation: ImageSource | None, params: Any) -> Illustrations:
    assert validation is not None
    indices = np.arange(min(_SHOWN_IMAGES, validation.num_examples))
    images = to_float(validation.read(indices)["image"])
    result = jax.device_get(fit(params, images))
    pairs = np.concatenate([images, np.clip(result.values, 0, 1)], axis=2)
    inner_lrs = np.exp(jax.device_get(params["log_inner_lrs"]))
    return Illustrations(
        {"original_and_reconstruction": pairs},
        {"latents": result.latents, "inner_lrs": inner_lrs},
    )
