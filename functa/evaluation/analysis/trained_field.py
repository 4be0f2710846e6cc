"""A trained field with the images that it is evaluated on."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from functa.data.images import ImageSource
from functa.fields import psnr
from functa.fields.fitter import Fitter
from functa.fields.pixels import to_float
from functa.runtime.batching import apply_in_batches

_REFERENCE_IMAGES = 1000
_REFERENCE_VALUES = 1 << 23  # limits the reference images: 128 with 65,536 latents each


class FittedLatents(NamedTuple):
    """Latents [n, i, j, d] and mse [n, steps + 1], before each inner step and after the last."""

    latents: np.ndarray
    mse: np.ndarray


class TrainedField:
    """A trained field, images of one split, and the latents that the inner loop fits to them.

    Attributes:
      field: the field; params: {"field", "log_inner_lrs"}, see Fitter.
      images: evaluated images [n, h, w, c] uint8; labels: [n] int32.
      targets: the images as float32 in [0, 1].
      train: source of the training images, for baselines and quantization ranges.
      seed: seed of random noise.
    """

    def __init__(
        self,
        *,
        fitter: Fitter,
        params: Any,
        train: ImageSource,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        """
        Args:
          batch_size: images of the training resolution that are computed at a time.
        """
        self.field, self.params = fitter.field, jax.device_get(params)  # one device computes
        self.train, self.seed = train, seed
        self.images, self.labels = images, labels
        self.targets = to_float(images)
        self._batch_size = batch_size
        self._fit = jax.jit(fitter.fit)
        self._decode = jax.jit(self.field, static_argnums=2)

    def in_batches(self, function: Callable, *arrays: np.ndarray, scale: int = 1) -> Any:
        """Applies a function to arrays [n, ...]; batches are scale^2 times smaller than usual."""
        batch_size = min(max(1, self._batch_size // scale**2), len(arrays[0]))
        return apply_in_batches(function, *arrays, batch_size=batch_size)

    def fit(self, images: np.ndarray) -> FittedLatents:
        """Fits latents to images [n, h, w, c] uint8 by the inner loop as trained."""

        def fit_batch(images):
            result = self._fit(self.params, to_float(images))
            return FittedLatents(result.latents, result.losses.T)

        return self.in_batches(fit_batch, images)

    def decode(self, latents: np.ndarray, scale: int = 1) -> np.ndarray:
        """Latents [n, i, j, d] -> values [n, scale h, scale w, c] float32, not clipped."""
        h, w, _ = self.field.image_shape
        shape = (scale * h, scale * w)
        return self.in_batches(
            lambda latents: self._decode(self.params["field"], latents, shape), latents, scale=scale
        )

    def mse(self, latents: np.ndarray) -> np.ndarray:
        """Mean squared error [n] of the evaluated images when decoded from `latents`."""
        return image_mse(self.decode(latents), self.targets)

    @functools.cached_property
    def fitted(self) -> FittedLatents:
        """Latents of the evaluated images."""
        return self.fit(self.images)

    @functools.cached_property
    def reference_images(self) -> np.ndarray:
        """First training images [m, h, w, c] uint8, for ranges and frequencies of latents."""
        limit = max(1, _REFERENCE_VALUES // math.prod(self.field.latent_shape))
        count = min(_REFERENCE_IMAGES, limit, self.train.num_examples)
        return self.train.read(np.arange(count))["image"]

    @functools.cached_property
    def reference_latents(self) -> np.ndarray:
        """Latents [m, i, j, d] of the reference images."""
        return self.fit(self.reference_images).latents

    @functools.cached_property
    def channel_std(self) -> np.ndarray:
        """Standard deviation of each latent channel over the reference latents: [d] float32."""
        return self.reference_latents.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)


def image_mse(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean squared error of each image [n, h, w, c]: [n]."""
    return np.square(values - targets).mean(axis=(1, 2, 3))


def mean_psnr(mse: np.ndarray) -> float:
    """Mean over images of the PSNR of their errors [n], in dB."""
    return float(psnr.psnr(mse).mean(dtype=np.float64))


def psnr_metrics(mse: np.ndarray) -> dict[str, float]:
    """Both conventions of the PSNR of errors [n], in dB: "psnr" and "psnr_of_mean_mse"."""
    mean = mse.mean(dtype=np.float64)
    return {"psnr": mean_psnr(mse), "psnr_of_mean_mse": float(psnr.psnr(mean))}
