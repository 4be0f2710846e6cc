"""A generator with its parameters, the field of its latents and the functaset it was trained on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.diffusion import inpainting
from functa.diffusion.generator import Generator
from functa.fields.field import Field
from functa.fields.fitter import Fitter
from functa.runtime import rng
from functa.runtime.batching import apply_in_batches

# Noise levels at which the error of the denoiser is measured.
ERROR_SIGMAS = np.geomspace(20.0, 0.02, 25, dtype=np.float32)
_ERROR_EXAMPLES = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedGenerator:
    """Samples latents in NumPy arrays. Programs are compiled once per shape.

    Attributes:
      params: of `generator`, on the host.
      fitter, field_params: field and inner loop, and their parameters, on the host.
      functaset: the training set of the generator; of a released model without records.
      known_denoising_error: see `denoising_error`; None: not measured yet.
    """

    generator: Generator
    params: Any
    fitter: Fitter
    field_params: Any
    functaset: Functaset
    known_denoising_error: np.ndarray | None = None

    @property
    def field(self) -> Field:
        return self.fitter.field

    @functools.cached_property
    def _sample(self):
        return jax.jit(self.generator.sample, static_argnames="keep_trajectory")

    @functools.cached_property
    def _invert(self):
        return jax.jit(self.generator.invert)

    @functools.cached_property
    def _interpolate(self):
        return jax.jit(self.generator.interpolate, static_argnames="count")

    def with_sampling(self, **changes: Any) -> "TrainedGenerator":
        """Returns a copy with other sampling settings: see `Generator.with_sampling`."""
        return dataclasses.replace(self, generator=self.generator.with_sampling(**changes))

    def sample(
        self, *, seed: int, numbers: np.ndarray, labels: np.ndarray, batch_size: int
    ) -> np.ndarray:
        """Latents [n, i, j, d] float32 of samples.

        For one batch size, the bits of sample n depend on the seed, n and the label alone.

        Args:
          numbers: [n] int32; labels: [n] int32 in [0, num_classes].
        """
        params, key = jax.device_put(self.params), rng.stream_key(seed, "sample")
        return apply_in_batches(
            lambda *batch: self._sample(params, key, *batch).latents,
            numbers,
            labels,
            batch_size=batch_size,
        )

    def sample_trajectory(
        self, *, seed: int, numbers: np.ndarray, labels: np.ndarray, batch_size: int
    ) -> np.ndarray:
        """Denoised latents [steps, n, i, j, d] at the start of each step; arguments of `sample`."""
        params, key = jax.device_put(self.params), rng.stream_key(seed, "sample")

        def trajectory(*batch):
            samples = self._sample(params, key, *batch, keep_trajectory=True)
            return samples.trajectory.swapaxes(0, 1)

        latents = apply_in_batches(trajectory, numbers, labels, batch_size=batch_size)
        return latents.swapaxes(0, 1)

    def initial_noise(self, *, seed: int, numbers: np.ndarray) -> jax.Array:
        """Noisy normalized latents [n, i, j, d] that the samples of a seed start from."""
        return self.generator.initial_noise(rng.stream_key(seed, "sample"), jnp.asarray(numbers))

    def invert(self, latents: np.ndarray, labels: np.ndarray) -> jax.Array:
        """Noisy normalized latents [n, i, j, d] from which sampling leads to `latents`."""
        return self._invert(self.params, latents, labels)

    def interpolate(self, noisy: jax.Array, labels: np.ndarray, *, count: int) -> np.ndarray:
        """Latents [count, i, j, d] between two endpoints, both included.

        Args:
          noisy: [2, i, j, d] of `initial_noise` or `invert`; labels: [2] int32.
        """
        labels = np.asarray(labels, np.int32)
        return np.asarray(self._interpolate(self.params, noisy, labels, count=count))

    @functools.cached_property
    def denoising_error(self) -> np.ndarray:
        """Mean squared error of the denoiser, without a class, at ERROR_SIGMAS: [25] float32.

        It is measured on up to 512 validation latents, or training latents if there are none.
        """
        if self.known_denoising_error is not None:
            return self.known_denoising_error
        source = self.functaset.source(self.evaluated_split)
        count = min(_ERROR_EXAMPLES, source.num_examples)
        records = source.read(np.arange(count) * source.num_examples // count)
        normalized = self.generator.normalization.normalize(jnp.asarray(float32_latents(records)))
        labels = jnp.full(count, self.generator.null_class, jnp.int32)
        denoise = self.generator.denoiser(jax.device_put(self.params))
        measure = jax.jit(
            lambda latents, key: inpainting.denoising_mse(
                denoise, latents, labels, ERROR_SIGMAS, key
            )
        )
        return np.asarray(measure(normalized, rng.stream_key(0, "noise")))

    @property
    def evaluated_split(self) -> str:
        """The split that measures field and denoiser: validation, or train if it is empty."""
        return "validation" if self.functaset.num_examples("validation") else "train"
