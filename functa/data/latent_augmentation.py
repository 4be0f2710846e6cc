"""Augmentation of latents while a classifier trains: drawn anew at every step, where the copies of encode are fixed.

Every random number is a function of the key and of the position in the batch, which is the global one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from functa.runtime.config import range_errors

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def make(
    *, latent_shape: Sequence[int], flip: bool, crop: int, drop: float, noise: float
) -> Augment:
    """(latents [b, i, j, d] float32, key) -> the same shape, changed in this order.

    Latents are normalised: a zero is the mean of its channel.

    Args:
      latent_shape: i, j, d.
      flip: mirror the grid left-right with probability one half. Each cell keeps its latents, and so its part of the
        image as it was: cells change places, and are not mirrored inside.
      crop: cells; pad every side with so many cells of zeros, and cut out i x j cells at random.
      drop: probability that the latents of a cell become zeros.
      noise: standard deviation of normal noise on every number.
    Raises:
      ValueError: impossible values; the message lists all of them.
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
        problems.append(f"flip={flip}: a grid of {i}x{j} cells has nothing to mirror")
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
    mirrored = jax.random.bernoulli(key, 0.5, (len(latents), 1, 1, 1))
    return jnp.where(mirrored, latents[:, :, ::-1], latents)


def _crop(latents: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    sides = (padding, padding)
    padded = jnp.pad(latents, ((0, 0), sides, sides, (0, 0)))
    starts = jax.random.randint(key, (len(latents), 2), 0, 2 * padding + 1)

    def cut(grid, start):
        return jax.lax.dynamic_slice(grid, (*start, 0), latents.shape[1:])

    return jax.vmap(cut)(padded, starts)


def mix(
    latents: jax.Array, targets: jax.Array, *, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixup: every example with a partner from a permutation of the batch.

    Args:
      latents: [b, i, j, d] float32.
      targets: [b, k] float32, probabilities.
      alpha: each example's share is drawn from Beta(alpha, alpha).
    Returns:
      (mixed latents, mixed targets), of the same shapes.
    Source: Zhang et al. 2018, "mixup", equation 2; deviation: one share an example, not a batch.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, shape=latents.shape[:1], dtype=jnp.float32)
    order = jax.random.permutation(order_key, latents.shape[0])
    weight = share[:, None, None, None]
    mixed = weight * latents + (1 - weight) * latents[order]
    return mixed, share[:, None] * targets + (1 - share[:, None]) * targets[order]
