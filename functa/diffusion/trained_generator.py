"""A generator with its parameters, the field of its latents and the functaset it was trained on."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.diffusion.generator import Generator
from functa.fields.field import Field
from functa.fields.fitter import Fitter
from functa.runtime import rng
from functa.runtime.batching import apply_in_batches


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedGenerator:
    """Samples latents in NumPy arrays. Programs are compiled once per shape.

    Attributes:
      params: of `generator`, on the host.
      fitter, field_params: field and inner loop, and their parameters, on the host.
      functaset: the training set of the generator.
    """

    generator: Generator
    params: Any
    fitter: Fitter
    field_params: Any
    functaset: Functaset

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

    def test_examples(self, indices: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Latents [n, i, j, d] float32 and labels [n] int32 of examples of the test split.

        Raises:
          ValueError: an index out of range.
        """
        count = self.functaset.num_examples("test")
        if max(indices) >= count:
            raise ValueError(f"test image {max(indices)} does not exist: use 0 to {count - 1}")
        records = self.functaset.source("test").read(np.asarray(indices))
        return np.asarray(float32_latents(records)), records["label"]
