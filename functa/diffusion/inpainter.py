"""Inpainting with a trained generator, and the baselines it is compared with."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.images import ImageSource
from functa.diffusion import inpainting, schedules
from functa.diffusion.observation import (
    Degradation,
    Observation,
    degrade,
    insert_observed,
    observe,
    unobserved_mse,
)
from functa.diffusion.trained_generator import ERROR_SIGMAS, TrainedGenerator
from functa.runtime import rng

# Key -> caption of the reconstructions that `compare_methods` returns.
METHODS = {
    "no_prior": "without prior",
    "mean_image": "mean training image",
    "sample": "one sample with prior",
    "sample_mean": "mean of samples with prior",
}
MAX_SAMPLES = 1000  # of one image
_MEAN_IMAGE_EXAMPLES = 10_000
_MEAN_IMAGE_PIXELS = 1 << 26  # of all examples
_SCHEDULE: dict[str, Any] = {"name": "karras", "sigma_min": 0.02, "sigma_max": 20.0, "rho": 7.0}


class Inpainter:
    """Reconstructs images from partial observations. One program serves all batches of a size."""

    def __init__(
        self,
        trained: TrainedGenerator,
        degradation: Degradation,
        *,
        steps: int,
        seed: int,
    ):
        """Prepares the sampler.

        Args:
          degradation: of the observations; masks of any form are possible.
          steps: noise levels of the sampler.
          seed: of masks, noise and samples.
        Raises:
          ValueError: the generator has no null class, or steps is below 1.
        """
        generator = trained.generator
        if generator.label_dropout == 0:
            raise ValueError(
                "inpainting samples without a class; train the generator with "
                "generate.label_dropout above 0"
            )
        self._trained, self.degradation, self.seed = trained, degradation, seed
        self._key = rng.stream_key(seed, "sample")
        self._sigmas = schedules.make_schedule(**_SCHEDULE, steps=steps)
        self._denoise = generator.denoiser(jax.tree.map(jnp.asarray, trained.params))
        # The error is close to a power of the noise level between the levels where it was measured.
        known_sigmas, known_mse = np.log(ERROR_SIGMAS[::-1]), np.log(trained.denoising_error[::-1])
        log_mse = np.interp(np.log(self._sigmas[:-1]), known_sigmas, known_mse)
        self._denoiser_mse = jnp.asarray(np.exp(log_mse), jnp.float32)
        # Error of the field plus noise of the observation.
        field_psnr = trained.functaset.manifest.splits[trained.evaluated_split]["psnr_of_mean_mse"]
        self._observed_std = float(np.sqrt(10 ** (-field_psnr / 10) + degradation.noise_std**2))
        self._compiled_fit = jax.jit(self._fit_without_prior)
        self._compiled_sample = jax.jit(self._sample)

    def reconstruct_without_prior(self, observation: Observation) -> np.ndarray:
        """Images [b, h, w, c] float32, not clipped, of the inner loop on the observed pixels."""
        return np.asarray(self._compiled_fit(observation))

    def sample(self, observation: Observation, *, image_ids: np.ndarray, count: int) -> np.ndarray:
        """Samples images given the observed pixels: [b, count, h, w, c] float32 in [0, 1].

        Args:
          image_ids: [b] integers from 0; sample k is a function of the seed, the observation, the
            id and k, except for rounding, which depends on the batch size.
          count: samples of each image, at most MAX_SAMPLES.
        Raises:
          ValueError: `count` or an id is out of range.
        """
        max_id = 2**31 // MAX_SAMPLES - 1
        if not 1 <= count <= MAX_SAMPLES or max(image_ids) > max_id or min(image_ids) < 0:
            raise ValueError(
                f"{count} samples of images {min(image_ids)} to {max(image_ids)}: use 1 to "
                f"{MAX_SAMPLES} samples of images 0 to {max_id}"
            )
        numbers = (image_ids[:, None] * MAX_SAMPLES + np.arange(count)).reshape(-1)
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), observation)
        images = np.clip(self._compiled_sample(repeated, numbers.astype(np.int32)), 0, 1)
        return images.reshape(len(image_ids), count, *images.shape[1:])

    def _fit_without_prior(self, observation: Observation) -> jax.Array:
        fitter, params = self._trained.fitter, self._trained.field_params
        latents = inpainting.fit_without_prior(
            fitter, params, observation, pool=self.degradation.pool
        )
        return fitter.field(params["field"], latents)

    def _sample(self, observation: Observation, numbers: jax.Array) -> jax.Array:
        trained, generator = self._trained, self._trained.generator

        def decode(normalized: jax.Array) -> jax.Array:
            latents = generator.normalization.restore(normalized)
            return trained.field(trained.field_params["field"], latents)

        def forward(normalized: jax.Array, mask: jax.Array) -> jax.Array:
            return degrade(decode(normalized), mask, self.degradation.pool)

        latents = inpainting.sample_posterior(
            self._denoise,
            forward,
            observation,
            self._sigmas,
            self._key,
            observed_std=self._observed_std,
            denoiser_mse=self._denoiser_mse,
            numbers=numbers,
            labels=jnp.full(len(numbers), generator.null_class, jnp.int32),
            latent_shape=generator.latent_shape,
        )
        return decode(latents)


def compare_methods(
    inpainter: Inpainter,
    images: np.ndarray,
    *,
    image_ids: np.ndarray,
    samples: int,
    mean_image: np.ndarray,
) -> dict[str, np.ndarray]:
    """Reconstructs partially observed images by every one of METHODS.

    Args:
      images: [b, h, w, c] float32; image_ids: [b] integers, the seeds of masks, noise and samples.
      samples: of each image.
      mean_image: [h, w, c] of the training split.
    Returns:
      {"observed": [b, h, w, c]; METHOD: [b, h, w, c] in [0, 1] with the observed pixels inserted;
      "mse_METHOD": [b], of the pixels that are not observed unchanged}.
    """
    degradation = inpainter.degradation
    seeds = [rng.stream_seed(inpainter.seed, "noise", int(number)) for number in image_ids]
    observation = observe(degradation, images, seeds)
    sampled = inpainter.sample(observation, image_ids=image_ids, count=samples)
    reconstructions = {
        "no_prior": inpainter.reconstruct_without_prior(observation),
        "mean_image": np.broadcast_to(mean_image, images.shape),
        "sample": sampled[:, 0],
        "sample_mean": sampled.mean(axis=1),
    }
    result = {"observed": np.asarray(observation.values)}
    for method, reconstruction in reconstructions.items():
        result[method] = insert_observed(degradation, observation, reconstruction)
        result[f"mse_{method}"] = unobserved_mse(degradation, observation, result[method], images)
    return result


def mean_training_image(train: ImageSource, image_shape: Sequence[int]) -> np.ndarray:
    """Mean [h, w, c] float32 in [0, 1] of the first 10,000 training images, or fewer large ones."""
    max_count = _MEAN_IMAGE_PIXELS // math.prod(image_shape[:2])
    count = min(train.num_examples, _MEAN_IMAGE_EXAMPLES, max_count)
    images = train.read(np.arange(count))["image"]
    return (images.mean(axis=0) / 255).astype(np.float32)
