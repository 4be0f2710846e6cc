"""Partially observed images: which pixels are observed, and the error on the rest."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Degradation(NamedTuple):
    """How an image is observed.

    Attributes:
      visible: "right" half, a random "tenth" of the pixels, or "all".
      pool: only the means of blocks of pool x pool pixels are observed.
      noise_std: standard deviation of normal noise.
    """

    visible: str
    pool: int
    noise_std: float

    @property
    def is_exact(self) -> bool:
        """Whether visible pixels are observed unchanged."""
        return self.pool == 1 and self.noise_std == 0


DEGRADATIONS = {
    "half": Degradation("right", 1, 0.0),
    "random10": Degradation("tenth", 1, 0.0),
    "lowres4": Degradation("all", 4, 0.0),
    "noisy": Degradation("all", 1, 0.2),
}


class Observation(NamedTuple):
    """mask [b, h, w, c] float32: 1 for visible pixels; values [b, h, w, c]: `degrade` of the image
    with noise."""

    mask: jax.Array
    values: jax.Array


def degrade(images: jax.Array, mask: jax.Array, pool: int) -> jax.Array:
    """Masks images [b, h, w, c] and replaces every pool x pool block by its mean.

    This is an orthogonal projection, so all squared errors have the same weight.
    """
    b, h, w, c = images.shape
    blocks = (mask * images).reshape(b, h // pool, pool, w // pool, pool, c)
    return jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(images.shape)


def validate_pooling(degradation: Degradation, image_shape: Sequence[int]) -> None:
    """Raises ValueError if blocks of `pool` pixels do not divide the image."""
    h, w, _ = image_shape
    pool = degradation.pool
    if h % pool or w % pool:
        raise ValueError(
            f"image_shape {h}x{w} must be a multiple of blocks of {pool}x{pool} pixels"
        )


def observe(
    degradation: Degradation, images: np.ndarray, seeds: list[tuple[int, ...]]
) -> Observation:
    """Observes images [b, h, w, c] float32, each with its own seed.

    Raises:
      ValueError: see `validate_pooling`.
    """
    validate_pooling(degradation, images.shape[1:])
    _, h, w, c = images.shape
    mask, noise = np.ones_like(images), np.empty_like(images)
    for k, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        noise[k] = degradation.noise_std * random.normal(size=(h, w, c))
        if degradation.visible == "right":
            mask[k, :, : w // 2] = 0
        elif degradation.visible == "tenth":
            is_visible = random.permutation(h * w) < max(1, h * w // 10)
            mask[k] = is_visible.reshape(h, w, 1)
    values = degrade(jnp.asarray(images + noise), jnp.asarray(mask), degradation.pool)
    return Observation(jnp.asarray(mask), values)


def insert_observed(
    degradation: Degradation, observation: Observation, images: np.ndarray
) -> np.ndarray:
    """Clips images [b, h, w, c] to [0, 1] and inserts the pixels that are observed unchanged."""
    images = np.clip(images, 0, 1)
    if not degradation.is_exact:
        return images
    return np.where(np.asarray(observation.mask) == 1, observation.values, images)


def unobserved_mse(
    degradation: Degradation,
    observation: Observation,
    reconstructions: np.ndarray,
    images: np.ndarray,
) -> np.ndarray:
    """Mean squared error of each image [b] over the pixels that are not observed unchanged."""
    hidden = np.ones_like(images)
    if degradation.is_exact:
        hidden = 1 - np.asarray(observation.mask)
    squared_errors = hidden * np.square(reconstructions - images)
    return np.sum(squared_errors, (1, 2, 3)) / hidden.sum((1, 2, 3))
