"""Augmentation of latents for classification: random at every training step.

The augmented copies of the encode stage, in contrast, are fixed. Random numbers depend on the key and
on the position in the global batch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from functa.runtime.config import range_errors

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def make_augment(
    *, latent_shape: Sequence[int], flip: bool, crop: int, drop: float, noise: float
) -> Augment:
    """Returns augment(latents [b, i, j, d] float32, key) -> latents of the same shape.

    Operations are applied in the order of the arguments. Latents are normalized: zero is the mean of a
    channel.

    Args:
      latent_shape: i, j, d.
      flip: mirror the grid left-right with probability 1/2. Cells change places; the part of the image
        inside a cell is not mirrored.
      crop: pad every side with `crop` cells of zeros and cut out a random window of i x j cells.
      drop: probability with which all latents of a cell become zero.
      noise: standard deviation of normal noise.
    Raises:
      ValueError: values are out of range; lists all of them.
    """
    i, j, _ = latent_shape
    problems = range_errors(
        {
            "crop": (crop, 0, min(i, j) - 1),
            "drop": (drop, 0.0, 0.999),
            "noise": (noise, 0.0, 1e3),
        }
    )
    if flip and j == 1:
        problems.append(f"flip={flip} needs a grid of at least 2 columns, not {i}x{j} cells")
    if problems:
        raise ValueError("; ".join(problems))

    def augment(latents: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        if flip:
            latents = _flip(latents, keys[0])
        if crop:
            latents = _crop(latents, keys[1], crop)
        if drop:
            dropped = jax.random.bernoulli(keys[2], drop, (*latents.shape[:3], 1))
            latents = jnp.where(dropped, 0, latents)
        if noise:
            latents = latents + noise * jax.random.normal(keys[3], latents.shape)
        return latents

    return augment


def _flip(latents: jax.Array, key: jax.Array) -> jax.Array:
    mirror = jax.random.bernoulli(key, 0.5, (len(latents), 1, 1, 1))
    return jnp.where(mirror, latents[:, :, ::-1], latents)


def _crop(latents: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    sides = (padding, padding)
    padded = jnp.pad(latents, ((0, 0), sides, sides, (0, 0)))
    starts = jax.random.randint(key, (len(latents), 2), 0, 2 * padding + 1)

    def cut(grid, start):
        return jax.lax.dynamic_slice(grid, (*start, 0), latents.shape[1:])

    return jax.vmap(cut)(padded, starts)


def mixup(
    latents: jax.Array, targets: jax.Array, *, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes every example with a partner, which a permutation of the batch assigns.

    Args:
      latents: [b, i, j, d] float32.
      targets: [b, k] float32, probabilities.
      alpha: the weight of each example is Beta(alpha, alpha) distributed.
    Returns:
      Mixed latents and targets, of the same shapes.
    Source: Zhang et al. 2018, "mixup", equation 2; deviation: one weight per example, not per batch.
    """
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, shape=latents.shape[:1], dtype=jnp.float32)
    order = jax.random.permutation(order_key, latents.shape[0])

    def mix(values: jax.Array) -> jax.Array:
        w = jnp.expand_dims(weight, tuple(range(1, values.ndim)))
        return w * values + (1 - w) * values[order]

    return mix(latents), mix(targets)
