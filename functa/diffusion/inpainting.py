"""Images from part of their pixels: latents that explain what was seen, with a diffusion model as their prior.

At every noise level the denoiser says which latents it expects. A step of Gauss-Newton, or a few, moves them to where
they also explain the pixels that were seen, as far as the denoiser's usual error allows; and that move is carried
back through the denoiser, which spreads it to latents that no seen pixel depends on. Then sampling goes on, with
noise. With normally distributed latents of unit variance and a linear field every step is the exact expectation.

Source: Song et al. 2023 (Pseudoinverse-guided diffusion models), equations 7 and 8; there observations are linear and
  the error sigma^2 / (1 + sigma^2). Deviations: Gauss-Newton through the field, and the denoiser's error is measured.
  Guidance by the gradient alone is Chung et al. 2023 (DPS).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.diffusion import solvers
from functa.diffusion.parameterization import Denoise, add_noise
from functa.fields import inner_loop
from functa.fields.field import Field

_NEWTON_STEPS = 2
_CONJUGATE_STEPS = 10  # of conjugate gradients, for each of them
_STEP_SIZES = (1.0, 0.5, 0.2, 0.0)  # the best one is taken: sines are not linear for long
_TINY = 1e-30
LOWRES = 4  # pixels a side that are seen as their mean


class Kind(NamedTuple):
    """What is seen of an image: a pattern of pixels ("right" half, a random "tenth", "all"), as means over blocks of
    pool x pool pixels, with normal noise of this standard deviation."""

    pattern: str
    pool: int
    noise: float


KINDS = {
    "half": Kind("right", 1, 0.0),
    "random10": Kind("tenth", 1, 0.0),
    "lowres4": Kind("all", LOWRES, 0.0),
    "noisy": Kind("all", 1, 0.2),
}
# What is compared, and in words.
METHODS = {
    "without": "without prior",
    "average": "mean training image",
    "draw": "one draw with prior",
    "mean": "mean of draws with prior",
}


class Observation(NamedTuple):
    """mask [b, h, w, c] float32: 1 where a pixel was looked at; data [b, h, w, c]: what was seen, `view` of
    the image and noise."""

    mask: jax.Array
    data: jax.Array


def view(images: jax.Array, mask: jax.Array, pool: int) -> jax.Array:
    """What is seen of images [b, h, w, c]: an orthogonal projection, so that all squared errors count alike."""
    b, h, w, c = images.shape
    blocks = (mask * images).reshape(b, h // pool, pool, w // pool, pool, c)
    return jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(images.shape)


def check(kind: Kind, image_shape: Sequence[int]) -> None:
    """
    Raises:
      ValueError: sides that blocks of `pool` pixels do not divide.
    """
    h, w, _ = image_shape
    if h % kind.pool or w % kind.pool:
        raise ValueError(
            f"images of {h}x{w} pixels are not made of blocks of {kind.pool}x{kind.pool}"
        )


def observe(kind: Kind, images: np.ndarray, seeds: list[tuple[int, ...]]) -> Observation:
    """Looks at images [b, h, w, c] float32, each with the randomness of its own seed.

    Raises:
      ValueError: see check.
    """
    check(kind, images.shape[1:])
    _, h, w, c = images.shape
    mask, noise = np.ones_like(images), np.empty_like(images)
    for k, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        noise[k] = kind.noise * random.normal(size=(h, w, c))
        if kind.pattern == "right":
            mask[k, :, : w // 2] = 0
        elif kind.pattern == "tenth":
            pixels = random.permutation(h * w) < max(1, h * w // 10)
            mask[k] = pixels.reshape(h, w, 1)
    seen = view(jnp.asarray(images + noise), jnp.asarray(mask), kind.pool)
    return Observation(jnp.asarray(mask), seen)


def fill_in(kind: Kind, observation: Observation, images: np.ndarray) -> np.ndarray:
    """Images [b, h, w, c], clipped to [0, 1], with pixels that were seen as they are in their places."""
    images = np.clip(images, 0, 1)
    if kind.pool > 1 or kind.noise:
        return images
    return np.where(np.asarray(observation.mask) == 1, observation.data, images)


def hidden_mse(kind: Kind, observation: Observation, made: np.ndarray, images: np.ndarray):
    """Mean squared error of each image [b] over the pixels that were not seen as they are."""
    hidden = np.ones_like(images)
    if kind.pool == 1 and not kind.noise:
        hidden = 1 - np.asarray(observation.mask)
    return np.sum(hidden * np.square(made - images), (1, 2, 3)) / hidden.sum((1, 2, 3))


def fit(field: Field, params: Any, observation: Observation, *, pool: int, steps: int) -> jax.Array:
    """Latents [b, i, j, d] by the inner loop alone: its steps on the pixels that were seen, without a prior.

    Args:
      params: of the task meta_learn.
    """
    rates = jnp.exp(params["log_inner_lrs"])
    rates = jnp.broadcast_to(rates, (steps, *rates.shape[1:]))
    p, q = field.cell_shape(field.image_shape[:2])

    def loss(latents: jax.Array) -> jax.Array:
        values = view(field(params["field"], latents), observation.mask, pool)
        # As in the inner loop, whose cells have all their pixels.
        return jnp.sum(jnp.square(values - observation.data)) / (p * q * field.image_shape[2])

    latents = jnp.zeros((len(observation.data), *field.latent_shape), jnp.float32)
    for step in range(steps):
        latents = inner_loop.inner_step(field, latents, rates[step][None], jax.grad(loss)(latents))
    return latents


def spread(
    denoise: Denoise, latents: jax.Array, labels: jax.Array, sigmas: np.ndarray, key: jax.Array
) -> jax.Array:
    """The denoiser's mean squared error at each noise level but the last, which is zero: [steps].

    Args:
      latents: [b, i, j, d] normalised, better not those that it was trained on.
    """

    def error(step):
        sigma, own = step
        level = jnp.broadcast_to(sigma, (len(latents),))
        noisy = add_noise(latents, jax.random.normal(own, latents.shape, jnp.float32), level)
        return jnp.mean(jnp.square(denoise(noisy, level, labels) - latents))

    levels = jnp.asarray(sigmas[:-1])
    return jax.lax.map(error, (levels, jax.random.split(key, len(levels))))


def _dot(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.sum(first * second, axis=(1, 2, 3), keepdims=True)


def _solve(operator: Callable[[jax.Array], jax.Array], target: jax.Array) -> jax.Array:
    """Conjugate gradients, for each example: operator(x) = target, symmetric and positive."""

    def step(_, carry):
        x, residual, direction, length = carry
        moved = operator(direction)
        size = length / jnp.maximum(_dot(direction, moved), _TINY)
        x, residual = x + size * direction, residual - size * moved
        shorter = _dot(residual, residual)
        direction = residual + shorter / jnp.maximum(length, _TINY) * direction
        return x, residual, direction, shorter

    first = (jnp.zeros_like(target), target, target, _dot(target, target))
    return jax.lax.fori_loop(0, _CONJUGATE_STEPS, step, first)[0]


def explain(
    seen: Callable[[jax.Array], jax.Array],
    data: jax.Array,
    expected: jax.Array,
    *,
    data_variance: jax.Array,
    variance: jax.Array,
) -> jax.Array:
    """The latents that minimise |seen(z) - data|^2 / data_variance + |z - expected|^2 / variance, nearly.

    Gauss-Newton from `expected`, each example with the best of a few step sizes.

    Args:
      seen: latents [b, i, j, d] -> what is seen of their images, [b, h, w, c].
    """
    ratio = variance / data_variance

    def cost(latents):
        return ratio * _dot(data - seen(latents), data - seen(latents)) + _dot(
            latents - expected, latents - expected
        )

    def step(_, latents):
        values, push = jax.linearize(seen, latents)
        pull = jax.linear_transpose(push, latents)
        target = ratio * pull(data - values)[0] + expected - latents
        move = _solve(lambda v: v + ratio * pull(push(v))[0], target)
        tried = jnp.stack([latents + size * move for size in _STEP_SIZES])
        best = jnp.argmin(jax.lax.map(cost, tried), axis=0)
        return jnp.take_along_axis(tried, best[None], axis=0)[0]

    return jax.lax.fori_loop(0, _NEWTON_STEPS, step, expected)


def impute(
    denoise: Denoise,
    seen: Callable[[jax.Array], jax.Array],
    data: jax.Array,
    sigmas: np.ndarray,
    key: jax.Array,
    *,
    data_std: float,
    variances: jax.Array,
    numbers: jax.Array,
    labels: jax.Array,
    latent_shape: tuple[int, ...],
) -> jax.Array:
    """Draws normalised latents [b, i, j, d] that the data could come from.

    Their mean is right after few steps. They lie too close together, as always in ancestral sampling: of a
    Gaussian, variances are a quarter too small after 20 steps and a twentieth after 160.

    Args:
      denoise: see diffusion.make_denoise.
      seen: normalised latents -> what is seen of their images; data: what was seen, [b, h, w, c].
      sigmas: falling noise levels [steps + 1], the last one zero, as of samplers.make_schedule.
      data_std: of what the field and the latents cannot explain of the data.
      variances: of `spread`, [steps].
      numbers: [b] int32: a number and a key are a draw's randomness; labels: [b] int32.
    """

    def noise(step):
        return solvers.noise(key, numbers=numbers, step=step, latent_shape=latent_shape)

    def advance(noisy, step):
        number, sigma, lower, variance = step
        level = jnp.broadcast_to(sigma, labels.shape)
        expected, pull = jax.vjp(lambda x: denoise(x, level, labels), noisy)
        explained = explain(
            seen, data, expected, data_variance=jnp.square(data_std), variance=variance
        )
        # The move is variance times the gradient of log p(data | expected); the denoiser's covariance is
        # sigma^2 times its Jacobian, so this is the expectation given the data.
        carried = pull((explained - expected) * (jnp.square(sigma) / variance))[0]
        latents = expected + carried
        # As much noise as keeps the right amount in all: ancestral sampling.
        fresh = lower * jnp.sqrt(1 - jnp.square(lower / sigma))
        kept = jnp.square(lower / sigma)
        return latents + kept * (noisy - latents) + fresh * noise(number), None

    steps = len(sigmas) - 1
    plan = (jnp.arange(1, steps + 1), jnp.asarray(sigmas[:-1]), jnp.asarray(sigmas[1:]), variances)
    return jax.lax.scan(advance, sigmas[0] * noise(0), plan)[0]
