"""The field and the inner loop, with the parameters that meta-learning trains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.fields import linearization
from functa.fields.field import Field
from functa.fields.inner_loop import Fit, InnerLoop, fit, validate_chunks
from functa.fields.psnr import psnr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitter:
    """A field and the inner loop that fits latents to images.

    The parameters `params` are {"field": parameters of the field, "log_inner_lrs": logarithm of the
    inner learning rates, of `InnerLoop.lrs_shape`}.

    Raises:
      ValueError: `inner_loop.chunks` does not suit the field.
    """

    field: Field
    inner_loop: InnerLoop

    def __post_init__(self):
        validate_chunks(self.field, self.inner_loop.chunks)

    def fit(self, params: Any, images: jax.Array) -> Fit:
        """Fits latents to images [b, h, w, c] float32 in [0, 1]."""
        return fit(
            self.field,
            params["field"],
            params["log_inner_lrs"],
            images,
            steps=self.inner_loop.steps,
            second_order=self.inner_loop.second_order,
            chunks=self.inner_loop.chunks,
        )

    def encode(self, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents [b, i, j, d] and PSNR [b] in dB of images [b, h, w, c] float32 in [0, 1]."""
        result = self.fit(params, images)
        return result.latents, psnr(result.losses[-1])

    def init(self, key: jax.Array, train_field: Field | None = None) -> Any:
        """Initial params. Inner learning rates are inner_loop.initial_lr / curvature, clipped.

        Args:
          train_field: field of the training windows, whose curvature is used; None: the field.
        """
        field_params = self.field.init(key)
        curvature = _curvature(train_field or self.field, field_params)
        # Rates below 2 / curvature are stable, so one value of initial_lr suits every field.
        log_lr = jnp.log(self.inner_loop.initial_lr / curvature)
        log_lr = jnp.clip(log_lr, np.log(self.inner_loop.min_lr), np.log(self.inner_loop.max_lr))
        shape = self.inner_loop.lrs_shape(self.field.latent_shape)
        return {"field": field_params, "log_inner_lrs": jnp.full(shape, log_lr, jnp.float32)}

    def param_shapes(self) -> Any:
        """Shapes and dtypes of the params."""
        shape = self.inner_loop.lrs_shape(self.field.latent_shape)
        return {
            "field": jax.eval_shape(self.field.init, jax.random.key(0)),
            "log_inner_lrs": jax.ShapeDtypeStruct(shape, jnp.float32),
        }

    def first_step_problems(self, key: jax.Array, train_field: Field) -> list[str]:
        """Reports a first inner step that overshoots at initialization; [] if it is stable.

        Compiles and measures the curvature, which takes a second or two.

        Args:
          key: the one that training initializes the field with.
        """
        settings = self.inner_loop
        curvature = float(jax.jit(lambda key: _curvature(train_field, self.field.init(key)))(key))
        lr = float(np.clip(settings.initial_lr / curvature, settings.min_lr, settings.max_lr))
        stable = linearization.STABLE_RADIUS / curvature
        if lr < stable:
            return []
        return [
            f"the first inner step is unstable: the learning rate is {lr:.4g} (inner_loop.initial_lr="
            f"{settings.initial_lr:g} / curvature {curvature:.4g}, clipped to inner_loop.min_lr="
            f"{settings.min_lr:g} and max_lr={settings.max_lr:g}), and rates below {stable:.4g} are stable: "
            f"set initial_lr below 2, for example 0.1, and min_lr below {stable:.4g}"
        ]


def _curvature(field: Field, params: Any) -> jax.Array:
    return linearization.spectral_radius(field, params, jnp.zeros((1, 1, 1, 1)))[0]


def build_field(config: ConfigDict) -> Field:
    """Builds the field of a config, from config.field and config.data.image_shape.

    Raises:
      ValueError: a value is impossible or missing.
    """
    needed = {part.name for part in dataclasses.fields(Field)} - {"image_shape"}
    if missing := sorted(needed - set(config.field)):
        raise ValueError(
            f"the config has no field.{', field.'.join(missing)}: another version of functa wrote it"
        )
    return Field(image_shape=tuple(config.data.image_shape), **config.field)


def build_fitter(config: ConfigDict) -> Fitter:
    """Builds the field and the inner loop of a config.

    Raises:
      ValueError: a value is impossible or missing.
    """
    return Fitter(field=build_field(config), inner_loop=InnerLoop(**config.inner_loop))
