"""The meta_learn task: trains the field and the inner learning rates to fit any image in a few steps.

The outer loss is the mean squared error after the last inner step ("mse": Dupont et al. 2022,
algorithm 1; Bauer et al. 2023, section 3), or the mean over images of its logarithm ("log_mse"), which
is proportional to minus the mean PSNR. With "mse" a few detailed images dominate the gradient of a
batch (docs/STUDY.md, "The outer loss").
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from functa.data import loader
from functa.data.images import ImageSource
from functa.fields import image_parts, inner_loop, linearization
from functa.fields.field import Field
from functa.fields.fitter import Fitter, build_field
from functa.fields.pixels import to_float
from functa.fields.psnr import psnr
from functa.runtime import mesh
from functa.training import optimizers
from functa.training.tasks import Illustrations, Task, TaskData, TaskMetrics

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


def make(
    settings: ConfigDict,
    *,
    fitter: Fitter,
    sources: dict[str, ImageSource],
    seed: int,
    row_shards: int,
    process_index: int,
    process_count: int,
) -> Task:
    """The task of the stage `meta_learn`.

    Its params are those of Fitter. Batches: {"image": uint8 [b, h, w, c], ...}.

    Args:
      settings: config.meta_learn.
      row_shards: devices that share an image, config.mesh.cell.
    Raises:
      ValueError: a setting is impossible. Nothing is compiled and no data is read here.
    """
    field = train_field(settings, fitter)
    local = local_field(settings, fitter, row_shards)
    i, j, _ = fitter.field.latent_shape
    image_part = settings.cells_per_image / (i * j) if settings.cells_per_image else 1.0
    processes = {"process_index": process_index, "process_count": process_count}
    loop = fitter.inner_loop
    return Task(
        name="meta_learn",
        init=functools.partial(fitter.init, train_field=field),
        sample_inputs=functools.partial(draw, settings, fitter.field),
        loss=functools.partial(loss, settings, loop, local),
        optimizer=make_optimizer(settings).followed_by(
            _only("log_inner_lrs", optimizers.clip_params(np.log(loop.min_lr), np.log(loop.max_lr)))
        ),
        data=TaskData(
            train_batches=lambda first, last: loader.train_batches(
                sources["train"],
                batch_size=settings.batch_size,
                first_step=first,
                last_step=last,
                seed=seed,
                **processes,
            ),
            eval_batches=lambda split: loader.eval_batches(
                sources[split], batch_size=settings.eval_batch_size, **processes
            ),
            images_per_step=settings.batch_size * image_part,
        ),
        metrics=TaskMetrics(functools.partial(evaluate, fitter), summarize, score="psnr"),
        finalize_logs=lambda logs: (
            logs | {"psnr_of_mean_mse": psnr(logs[f"inner_loss_{loop.steps}"])}
        ),
        monitor=_make_watch(field),
        illustrate=functools.partial(_illustrate, jax.jit(fitter.fit), sources.get("validation")),
        batch_spec=mesh.BY_EXAMPLE if local is field else mesh.BY_ROWS,
    )


def draw(settings: ConfigDict, field: Field, batch: Any, key: jax.Array) -> jax.Array:
    """Training images or windows [b, h, w, c] float32 in [0, 1] of a batch, randomly flipped if set."""
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


def evaluate(fitter: Fitter, params: Any, batch: Any) -> dict[str, jax.Array]:
    """Mean squared error and PSNR of each image [b] after the inner loop."""
    mse = fitter.fit(params, to_float(batch["image"])).losses[-1]
    return {"mse": mse, "psnr": psnr(mse)}


def validate(config: ConfigDict) -> list[str]:
    """Problems of config.field, config.inner_loop and config.meta_learn, one line each."""
    problems: list[str] = []

    def attempt(build: Callable[[], Any]) -> Any:
        try:
            return build()
        except (ValueError, TypeError) as error:
            message = str(error).replace("optimizer.", "meta_learn.optimizer.")
            problems.extend(message.splitlines())

    settings = config.meta_learn
    field = attempt(lambda: build_field(config))
    loop = attempt(lambda: inner_loop.InnerLoop(**config.inner_loop))
    attempt(lambda: make_optimizer(settings))
    problems += _settings_problems(settings, tuple(config.field.latent_shape))
    if not problems:
        attempt(
            lambda: local_field(settings, Fitter(field=field, inner_loop=loop), config.mesh.cell)
        )
    return problems


def make_optimizer(settings: ConfigDict) -> optimizers.Optimizer:
    """The optimizer of config.meta_learn."""
    return optimizers.make(**settings.optimizer, steps=settings.steps, decay_mask=decay_mask)


def decay_mask(params: Any) -> Any:
    """Weight decay applies to matrices of the field, not to biases or inner learning rates."""
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params["field"])
    return {"field": matrices, "log_inner_lrs": False}


def _settings_problems(settings: ConfigDict, latent_shape: tuple[int, ...]) -> list[str]:
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


def _make_watch(field: Field) -> Callable[[Any], tuple[dict[str, float], str]]:
    """Returns a function that measures the stability of the inner loop and warns before it diverges.

    It is a coarse test. Before a run diverges, learning rates x curvature usually grows tenfold
    within some ten steps, but not always (docs/STUDY.md).
    """

    @jax.jit
    def measure(params):
        return linearization.spectral_radius(field, params["field"], params["log_inner_lrs"])

    def watch(params):
        radii = np.asarray(measure(params)).tolist()
        scalars = {f"inner_radius_{step}": radius for step, radius in enumerate(radii)}
        if max(radii) <= _MAX_HEALTHY_RADIUS:
            return scalars, ""
        return scalars, (
            f"the inner loop is close to instability: learning rates x curvature is {max(radii):.3g}, "
            f"healthy runs stay below {_MAX_HEALTHY_RADIUS:g}. Lower meta_learn.optimizer.learning_rate"
        )

    return watch


def _illustrate(fit: Callable, validation: ImageSource | None, params: Any) -> Illustrations:
    assert validation is not None
    indices = np.arange(min(_SHOWN_IMAGES, validation.num_examples))
    images = validation.read(indices)["image"] / np.float32(255)
    result = jax.device_get(fit(params, images))
    pairs = np.concatenate([images, np.clip(result.values, 0, 1)], axis=2)
    inner_lrs = np.exp(jax.device_get(params["log_inner_lrs"]))
    return Illustrations(
        {"original_and_reconstruction": pairs},
        {"latents": result.latents, "inner_lrs": inner_lrs},
    )


def _only(name: str, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a stateless transformation to one entry of the params."""

    def update(updates, state, params=None):
        changed, _ = transformation.update(updates[name], optax.EmptyState(), params[name])
        return updates | {name: changed}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
