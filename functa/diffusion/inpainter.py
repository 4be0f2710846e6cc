"""A generator that fills in images: functa/imputation.py with the field, the latents and the prior of one run."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.images import ImageSource
from functa.diffusion import inpainting, solvers
from functa.diffusion.inpainting import METHODS
from functa.pipeline.load import Generator
from functa.runtime import rng
from functa.training.tasks import generation

MOST_DRAWS = 1000  # of an image
_AVERAGED = 10_000  # training images at most
_AVERAGED_PIXELS = 1 << 26  # of them
_MEASURED = 512  # examples that the denoiser's error is measured on
_SCHEDULE: dict[str, Any] = {"name": "karras", "sigma_min": 0.02, "sigma_max": 20.0, "rho": 7.0}


class Imputer:
    """What does not depend on the images: one program for all batches of a size."""

    def __init__(self, generator: Generator, kind: inpainting.Kind, *, steps: int, seed: int):
        """Measures the prior's error on validation latents, or on training latents where there are none.

        Args:
          kind: what is seen; its pattern is not looked at, so that masks may be anything.
          steps: noise levels.
          seed: of noise and draws.
        Raises:
          ValueError: a generator that knows no image of unknown class, or fewer than one step.
        """
        config = generator.config
        if config.generate.label_dropout == 0:
            raise ValueError(
                "the class of an image that is seen in part is not known, and this generator wants one: it was "
                "trained with generate.label_dropout=0"
            )
        self._generator, self.kind, self.seed = generator, kind, seed
        self._key = rng.stream_key(seed, "sample")
        self._sigmas = solvers.make_schedule(**_SCHEDULE, steps=steps)
        self._denoise = generation.make_denoise(config, jax.tree.map(jnp.asarray, generator.params))
        self._null = config.data.num_classes
        split = "validation" if generator.functaset.num_examples("validation") else "train"
        self._variances = self._measure(split)
        # What the field cannot show, and what noise hides.
        field_psnr = generator.functaset.manifest.splits[split]["psnr_of_mean_mse"]
        self._data_std = float(np.sqrt(10 ** (-field_psnr / 10) + kind.noise**2))
        self._without = jax.jit(self._fit)
        self._with = jax.jit(self._draw)

    def without(self, observation: inpainting.Observation) -> np.ndarray:
        """Images [b, h, w, c] float32, not clipped, by the inner loop on what was seen, without prior."""
        return np.asarray(self._without(observation))

    def draws(
        self, observation: inpainting.Observation, *, names: np.ndarray, count: int
    ) -> np.ndarray:
        """`count` draws of each image: [b, count, h, w, c] float32 in [0, 1].

        Args:
          names: [b] integers from 0; draw k is a function of the seed, what is seen, the image's name and k, but for
            rounding, which depends on how many are drawn at a time.
          count: at most 1000.
        Raises:
          ValueError: too many draws, or a name above 2,147,482.
        """
        if not 1 <= count <= MOST_DRAWS or max(names) >= 2**31 // MOST_DRAWS or min(names) < 0:
            raise ValueError(
                f"{count} draws of images {min(names)} to {max(names)}: at most {MOST_DRAWS} draws, of images 0 to "
                f"{2**31 // MOST_DRAWS - 1}"
            )
        numbers = (names[:, None] * MOST_DRAWS + np.arange(count)).reshape(-1).astype(np.int32)
        chains = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), observation)
        drawn = np.clip(np.asarray(self._with(chains, numbers)), 0, 1)
        return drawn.reshape(len(names), count, *drawn.shape[1:])

    def _measure(self, split: str) -> jax.Array:
        source = self._generator.functaset.source(split, cache="none")
        count = min(_MEASURED, source.num_examples)
        latents = float32_latents(source.read(np.arange(count) * source.num_examples // count))
        normalized = self._generator.normalization.normalize(jnp.asarray(latents))
        labels = jnp.full(count, self._null, jnp.int32)
        measure = jax.jit(
            lambda latents: inpainting.spread(
                self._denoise, latents, labels, self._sigmas, rng.stream_key(self.seed, "noise")
            )
        )
        return measure(normalized)

    def _fit(self, observation: inpainting.Observation) -> jax.Array:
        field, params = self._generator.field, self._generator.field_params
        steps = self._generator.config.inner_loop.steps
        latents = inpainting.fit(field, params, observation, pool=self.kind.pool, steps=steps)
        return field(params["field"], latents)

    def _draw(self, observation: inpainting.Observation, numbers: jax.Array) -> jax.Array:
        generator = self._generator

        def decode(normalized):
            latents = generator.normalization.restore(normalized)
            return generator.field(generator.field_params["field"], latents)

        drawn = inpainting.impute(
            self._denoise,
            lambda latents: inpainting.view(decode(latents), observation.mask, self.kind.pool),
            observation.data,
            self._sigmas,
            self._key,
            data_std=self._data_std,
            variances=self._variances,
            numbers=numbers,
            labels=jnp.full(len(numbers), self._null, jnp.int32),
            latent_shape=tuple(generator.config.field.latent_shape),
        )
        return decode(drawn)


def compare(
    imputer: Imputer,
    images: np.ndarray,
    *,
    names: np.ndarray,
    draws: int,
    average: np.ndarray,
) -> dict[str, np.ndarray]:
    """Every one of imputation.METHODS on images of which a part is hidden.

    Args:
      images: [b, h, w, c] float32; names: [b] integers, the randomness of what is seen and of draws.
      draws: of each image; average: [h, w, c], what is known without looking.
    Returns:
      {"seen": [b, h, w, c]; each of METHODS: [b, h, w, c] in [0, 1], seen pixels in their places; mse_METHOD: [b],
      of the pixels that were not seen as they are}.
    """
    kind = imputer.kind
    seeds = [rng.stream_seed(imputer.seed, "noise", int(name)) for name in names]
    observation = inpainting.observe(kind, images, seeds)
    drawn = imputer.draws(observation, names=names, count=draws)
    made = {
        "without": imputer.without(observation),
        "average": np.broadcast_to(average, images.shape),
        "draw": drawn[:, 0],
        "mean": drawn.mean(axis=1),
    }
    filled = {name: inpainting.fill_in(kind, observation, made[name]) for name in METHODS}
    mse = {
        f"mse_{name}": inpainting.hidden_mse(kind, observation, filled[name], images)
        for name in METHODS
    }
    return filled | mse | {"seen": np.asarray(observation.data)}


def mean_image(train: ImageSource, image_shape: Sequence[int]) -> np.ndarray:
    """[h, w, c] float32 in [0, 1] of training images: the first ten thousand, of large ones fewer."""
    most = min(train.num_examples, _AVERAGED, _AVERAGED_PIXELS // math.prod(image_shape[:2]))
    images = train.read(np.arange(most))["image"]
    return (images.mean(axis=0) / 255).astype(np.float32)
