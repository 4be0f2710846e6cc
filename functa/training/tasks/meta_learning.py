"""Meta-learning: trains the field and the inner rates so that a few gradient steps fit any image.

The outer loss is the mean squared error after the last inner step ("mse": Dupont et al. 2022,
algorithm 1; Bauer et al. 2023, section 3) or the mean over images of its logarithm ("log_mse"),
which is their mean PSNR but for the sign and the unit: a batch is then not ruled by its few
images of much detail (docs/STUDY.md, "The outer loss").
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from functa.data import loader
from functa.data.images import ImageSource
from functa.fields import builders, inner_loop, psnr, row_sharding
from functa.fields.field import Field, make_field
from functa.runtime import mesh
from functa.training import optimizers
from functa.training.tasks import Illustrations, Task

LOSSES = ("mse", "log_mse")
_NEGLIGIBLE_MSE = 1e-6  # 60 dB: what is better than that is left alone
_SHOWN = 8
_LARGEST_HEALTHY_RADIUS = 10.0  # of rates x curvature; the largest of a run that went well: 5.9


def make(
    config: ConfigDict,
    sources: dict[str, ImageSource],
    *,
    process_index: int,
    process_count: int,
) -> Task:
    """The task of the stage `meta_learn`.

    params: {"field": of Field.init, "log_inner_lrs": of inner_loop.lrs_shape}. Batches: {"image":
      uint8 [b, h, w, c], ...}.

    Raises:
      ValueError: a setting that cannot work, with its numbers. Nothing is compiled and no data is
        read here.
    """
    problems = check(config)
    if problems:
        raise ValueError("; ".join(problems))
    field = make_field(config)
    trained = builders.training_field(config)
    band = builders.training_band(config)
    fit = builders.make_fit(config)
    loop, settings = config.inner_loop, config.meta_learn
    lrs_shape = builders.make_lrs_shape(config)
    optimizer = make_optimizer(config)

    def init(key):
        field_params, curvature = builders.initial_field(config, key)
        # Rates begin relative to the measured curvature of the first step, so that one setting
        # serves every field.
        log_lr = jnp.log(loop.initial_lr / curvature)
        log_lr = jnp.clip(log_lr, np.log(loop.min_lr), np.log(loop.max_lr))
        return {"field": field_params, "log_inner_lrs": jnp.full(lrs_shape, log_lr, jnp.float32)}

    def draw(batch, key):
        cell_key, flip_key = jax.random.split(key)
        images = batch["image"]
        if settings.cells_per_image:
            images = random_windows(
                cell_key, images, field, cells=settings.cells_per_image, side=settings.window
            )
        images = builders.to_float(images)
        if settings.flips:
            images = random_flips(flip_key, images)
        return images

    def loss(params, images):
        result = inner_loop.fit(
            band,
            params["field"],
            row_sharding.own_rates(band, params["log_inner_lrs"]),
            images,
            steps=loop.steps,
            second_order=loop.second_order,
            chunks=1 if settings.cells_per_image else loop.chunks,
        )
        inner = jnp.mean(result.losses, axis=1)
        lrs = jnp.exp(params["log_inner_lrs"])
        logs = {f"inner_loss_{step}": value for step, value in enumerate(inner)}
        logs |= {"inner_lr_mean": lrs.mean(), "inner_lr_min": lrs.min(), "inner_lr_max": lrs.max()}
        if settings.loss == "mse":
            return inner[-1], logs
        windows = settings.cells_per_image // settings.window**2 or 1
        mse = jnp.mean(result.losses[-1].reshape(-1, windows), axis=1)
        mse = row_sharding.mean(band, mse)
        return jnp.mean(jnp.log(mse + _NEGLIGIBLE_MSE)), logs

    def finish(logs):
        return logs | {"psnr_of_mean_mse": psnr.psnr(logs[f"inner_loss_{loop.steps}"])}

    def evaluate(params, batch):
        mse = fit(params, builders.to_float(batch["image"])).losses[-1]
        return {"mse": mse, "psnr": psnr.psnr(mse)}

    i, j, _ = field.latent_shape
    part = settings.cells_per_image / (i * j) if settings.cells_per_image else 1.0
    processes = {"process_index": process_index, "process_count": process_count}
    return Task(
        name="meta_learn",
        init=init,
        draw=draw,
        loss=loss,
        finish=finish,
        evaluate=evaluate,
        summarize=summarize,
        score="psnr",
        optimizer=optax.chain(
            optimizer.transformation,
            _only("log_inner_lrs", optimizers.clamp(np.log(loop.min_lr), np.log(loop.max_lr))),
        ),
        learning_rate=optimizer.learning_rate,
        watch=_make_watch(trained),
        images_per_step=settings.batch_size * part,
        train_batches=lambda first, last: loader.train_batches(
            sources["train"],
            batch_size=settings.batch_size,
            first_step=first,
            last_step=last,
            seed=config.seed,
            **processes,
        ),
        eval_batches=lambda split: loader.eval_batches(
            sources[split], batch_size=settings.eval_batch_size, **processes
        ),
        illustrate=lambda params: _illustrate(fit, params, sources["validation"]),
        spec=mesh.BY_EXAMPLE if band is trained else mesh.BY_ROWS,
        shards_params=False,
    )


def check(config: ConfigDict) -> list[str]:
    """Every impossible value in config.field, inner_loop and meta_learn; [] if there is none."""
    problems: list[str] = []
    for make_part in (
        make_field,
        builders.check_inner_loop,
        check_settings,
        builders.training_field,
        builders.training_band,
        builders.make_lrs_shape,
        make_optimizer,
    ):
        try:
            make_part(config)
        except (ValueError, TypeError) as error:
            told = str(error).replace("optimizer.", "meta_learn.optimizer.")
            problems += told.splitlines()
    return list(dict.fromkeys(problems))  # a bad field spoils several parts


def make_optimizer(config: ConfigDict) -> optimizers.Optimizer:
    settings = config.meta_learn
    return optimizers.make(**settings.optimizer, steps=settings.steps, decay_mask=decay_mask)


def decay_mask(params: Any) -> Any:
    """What weight decay shrinks: matrices of the field, not its biases and not the inner rates."""
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params["field"])
    return {"field": matrices, "log_inner_lrs": False}


def check_settings(config: ConfigDict) -> None:
    """Raises ValueError for a loss or a number of cells that means nothing."""
    cells = config.meta_learn.cells_per_image
    if config.meta_learn.loss not in LOSSES:
        raise ValueError(
            f"meta_learn.loss={config.meta_learn.loss!r}: known are {', '.join(LOSSES)}"
        )
    side = config.meta_learn.window
    i, j, _ = config.field.latent_shape
    if not 0 <= cells <= i * j:
        raise ValueError(
            f"meta_learn.cells_per_image={cells}: the grid of {i}x{j} has {i * j} cells"
        )
    if side < 1 or cells % side**2:
        raise ValueError(
            f"meta_learn.cells_per_image={cells} must be a multiple of the {side**2} cells of a window "
            f"(meta_learn.window={side})"
        )


def random_windows(
    key: jax.Array, images: jax.Array, field: Field, *, cells: int, side: int
) -> jax.Array:
    """`cells` cells of each image, in windows of side x side neighbours, drawn with replacement.

    The draw of an image depends on the key and its position in the global batch, not on the number
    of devices.

    Args:
      images: [b, h, w, c].
    Returns:
      [b * cells / side^2, side * p, side * q, c], those of one image together.
    """
    i, j, _ = field.latent_shape
    p, q = field.cell_shape(field.image_shape[:2])
    shape = (side * p, side * q, images.shape[3])
    columns = j - side + 1
    count = cells // side**2
    place = jax.random.randint(key, (len(images), count), 0, (i - side + 1) * columns)

    def cut(image, place):
        return jax.lax.dynamic_slice(image, (place // columns * p, place % columns * q, 0), shape)

    windows = jax.vmap(jax.vmap(cut, (None, 0)))(images, place)
    return windows.reshape(len(images) * count, *shape)


def random_flips(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image or cell [b, h, w, c] mirrored upside down, left to right, both or not at all, by chance."""
    upside_down, left_right = jax.random.bernoulli(key, 0.5, (2, len(images), 1, 1, 1))
    images = jnp.where(upside_down, images[:, ::-1], images)
    return jnp.where(left_right, images[:, :, ::-1], images)


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        "psnr": float(rows["psnr"].mean(dtype=np.float64)),
        "psnr_of_mean_mse": float(psnr.psnr(rows["mse"].mean(dtype=np.float64))),
    }


def _make_watch(field: Field) -> Callable[[Any], tuple[dict[str, float], str]]:
    """Notices that the inner loop nears the edge, where it turns chaotic.

    A coarse sign: where an outer step outruns the weights, rates x curvature usually grows tenfold
    in some ten steps, but a run may fall without it; see docs/STUDY.md.
    """

    @jax.jit
    def measure(params):
        return inner_loop.spectral_radius(field, params["field"], params["log_inner_lrs"])

    def watch(params):
        radii = np.asarray(measure(params)).tolist()
        scalars = {f"inner_radius_{step}": radius for step, radius in enumerate(radii)}
        if max(radii) <= _LARGEST_HEALTHY_RADIUS:
            return scalars, ""
        return scalars, (
            f"the inner loop nears instability: rates x curvature is {max(radii):.3g}, healthy "
            f"runs stay below {_LARGEST_HEALTHY_RADIUS:g}; a lower "
            "meta_learn.optimizer.learning_rate is the usual way out"
        )

    return watch


def _illustrate(fit: Callable, params: Any, validation: ImageSource) -> Illustrations:
    images = validation.read(np.arange(min(_SHOWN, validation.num_examples)))["image"]
    images = images / np.float32(255)
    result = jax.device_get(jax.jit(fit)(params, images))
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
