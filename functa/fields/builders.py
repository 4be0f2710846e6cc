"""What a config says of fitting: the field, its inner rates, and the loop that fits images to it.

Meta-learning trains what is made here; encoding and analysis use it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.fields import inner_loop, psnr, row_sharding
from functa.fields.field import Field, make_field
from functa.runtime import rng
from functa.runtime.config import range_errors


def make_fit(config: ConfigDict) -> Callable[[Any, jax.Array], inner_loop.Fit]:
    """(params, images [b, h, w, c] float32) -> Fit of whole images, as evaluation and encoding do it."""
    field, loop = make_field(config), config.inner_loop

    def fit(params, images):
        return inner_loop.fit(
            field,
            params["field"],
            params["log_inner_lrs"],
            images,
            steps=loop.steps,
            second_order=loop.second_order,
            chunks=loop.chunks,
        )

    return fit


def make_encoder(config: ConfigDict) -> jax.stages.Wrapped:
    """(params, images [b, h, w, c] float32) -> latents [b, i, j, d] and psnr [b] in dB; compiled."""
    fit = make_fit(config)

    @jax.jit
    def encode(params, images):
        result = fit(params, images)
        return result.latents, psnr.psnr(result.losses[-1])

    return encode


def to_float(images: jax.Array) -> jax.Array:
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / jnp.float32(255)


def training_field(config: ConfigDict) -> Field:
    """The field as training sees it: of windows where random cells are trained on."""
    field = make_field(config)
    if not config.meta_learn.cells_per_image:
        return field
    if config.inner_loop.lr_shape in ("cell", "full"):
        raise ValueError(
            f"inner_loop.lr_shape={config.inner_loop.lr_shape} has a rate for every cell, but random cells are all "
            "alike: set meta_learn.cells_per_image=0 or lr_shape=channel"
        )
    return field.of_window(config.meta_learn.window)


def training_band(config: ConfigDict) -> Field:
    """What a device sees of `training_field`: a band of it where config.mesh.cell devices share an image."""
    field, count = training_field(config), config.mesh.cell
    if count < 1:
        raise ValueError(f"mesh.cell={count}: how many devices share an image must be given")
    if count == 1:
        return field
    if config.meta_learn.cells_per_image:
        raise ValueError(
            f"mesh.cell={count} shares out whole images: random cells are shared out as they are; set "
            "meta_learn.cells_per_image=0 or mesh.cell=1"
        )
    band = row_sharding.band_of(field, count)
    inner_loop.check_chunks(band, config.inner_loop.chunks)
    return band


def make_lrs_shape(config: ConfigDict) -> tuple[int, ...]:
    """Shape of the inner rates: inner_loop.lrs_shape of the field that is trained."""
    loop = config.inner_loop
    return inner_loop.lrs_shape(
        training_field(config).latent_shape,
        lr_shape=loop.lr_shape,
        steps=loop.steps,
        lr_per_step=loop.lr_per_step,
    )


def initial_field(config: ConfigDict, key: jax.Array) -> tuple[Any, jax.Array]:
    """(parameters, curvature of the first inner step) of the field that training begins with."""
    params = make_field(config).init(key)
    unit_rates = jnp.zeros((1, 1, 1, 1))
    return params, inner_loop.spectral_radius(training_field(config), params, unit_rates)[0]


def check_inner_loop(config: ConfigDict) -> None:
    """Raises ValueError for settings of the inner loop that mean nothing."""
    loop = config.inner_loop
    problems = range_errors(
        {
            "inner_loop.steps": (loop.steps, 1, 1000),
            "inner_loop.min_lr": (loop.min_lr, 1e-12, 1e12),
            "inner_loop.max_lr": (loop.max_lr, 1e-12, 1e12),
            "inner_loop.initial_lr": (loop.initial_lr, 1e-12, 1e12),
        }
    )
    if problems:
        raise ValueError("\n".join(problems))
    inner_loop.check_chunks(make_field(config), loop.chunks)
    if loop.min_lr >= loop.max_lr:
        raise ValueError(f"inner_loop: want min_lr < max_lr, got {loop.min_lr} and {loop.max_lr}")


def check_first_step(config: ConfigDict) -> list[str]:
    """Whether the first inner step of the field that training begins with would overshoot; [] if not.

    Measures its curvature: a second or two.
    """
    key = rng.stream_key(config.seed, "init")
    curvature = float(jax.jit(lambda key: initial_field(config, key)[1])(key))
    loop = config.inner_loop
    rate = float(np.clip(loop.initial_lr / curvature, loop.min_lr, loop.max_lr))
    stable = inner_loop.STABLE_RADIUS / curvature
    if rate < stable:
        return []
    return [
        f"the first inner step is unstable: its curvature is {curvature:.4g}, so rates below "
        f"{stable:.4g} are stable, and the rate is {rate:.4g} (inner_loop.initial_lr="
        f"{loop.initial_lr:g} / curvature, within min_lr={loop.min_lr:g} and max_lr="
        f"{loop.max_lr:g}): set initial_lr below 2, as 0.1, and min_lr below {stable:.4g}"
    ]
