"""What is analysed: a trained field and the images it is asked about."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.data.images import ImageSource
from functa.fields import psnr
from functa.fields.fitter import build_fitter
from functa.training.tasks import meta_learning

# Of the train split, for ranges and tables of what is stored in few bits: so many images, but no more than of so
# many numbers: 128 of 65,536.
_REFERENCE_IMAGES = 1000
_REFERENCE_NUMBERS = 1 << 23


class Fitted(NamedTuple):
    """latents [n, i, j, d]; mse [n, steps + 1], before each inner step and after all; float32."""

    latents: np.ndarray
    mse: np.ndarray


class Subject:
    """A trained field, images of one split, and what several measures need of them.

    Attributes:
      config, field, params: of the run; params are those of the task meta_learn.
      train: the train split, for baselines and for ranges; nothing is scored on it unless `split`
        names it.
      images: [n, h, w, c] uint8 and labels [n] int32: `count` examples, evenly spread over `split`.
      crops: {scale: [n, scale h, scale w, c] uint8}, pieces of larger pictures; {} where none are
        asked about.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Any,
        sources: dict[str, ImageSource],
        *,
        split: str,
        count: int,
        crops: dict[int, np.ndarray],
    ):
        fitter = build_fitter(config)
        self.config, self.field, self.crops = config, fitter.field, crops
        self.params = jax.device_get(params)  # one device computes
        self.train = sources["train"]
        rows = np.linspace(0, sources[split].num_examples - 1, count).astype(np.int64)
        batch = sources[split].read(rows)
        self.images, self.labels = batch["image"], batch["label"]
        self._fit = jax.jit(fitter.fit)
        self._decode = jax.jit(self.field, static_argnums=2)

    def in_batches(self, function: Callable[..., Any], *arrays: np.ndarray, part: int = 1) -> Any:
        """function(*arrays) over the leading axis, an evaluation batch at a time, on the host.

        The last batch is filled up with the last row, so that there is one program for all.

        Args:
          function: arrays [b, ...] -> tree of arrays [b, ...].
          part: of an evaluation batch, 1 / part is taken at a time: for larger images.
        """
        count = len(arrays[0])
        size = min(max(1, self.config.meta_learn.eval_batch_size // part), count)
        results = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            result = function(*(array[rows] for array in arrays))
            results.append(jax.tree.map(lambda leaf: np.asarray(leaf)[: count - start], result))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def fit(self, images: np.ndarray) -> Fitted:
        """The inner loop as it was trained, of images [n, h, w, c] uint8."""

        def fit_batch(images):
            result = self._fit(self.params, to_float(images))
            return Fitted(result.latents, result.losses.T)

        return self.in_batches(fit_batch, images)

    def decode(self, latents: np.ndarray, scale: int = 1) -> np.ndarray:
        """Latents [n, i, j, d] -> values [n, scale h, scale w, c] float32, not clipped."""
        h, w, _ = self.field.image_shape
        shape = (scale * h, scale * w)
        decode = functools.partial(self._decode, self.params["field"])
        return self.in_batches(lambda latents: decode(latents, shape), latents, part=scale**2)

    def mse(self, latents: np.ndarray) -> np.ndarray:
        """Mean squared error of each of `images` decoded from other latents: [n] float32."""
        return image_mse(self.decode(latents), to_float(self.images))

    @functools.cached_property
    def fitted(self) -> Fitted:
        """Of `images`."""
        return self.fit(self.images)

    @property
    def reference_images(self) -> np.ndarray:
        """The first training images: [m, h, w, c] uint8."""
        most = max(1, _REFERENCE_NUMBERS // math.prod(self.field.latent_shape))
        count = min(_REFERENCE_IMAGES, most, self.train.num_examples)
        return self.train.read(np.arange(count))["image"]

    @functools.cached_property
    def reference_latents(self) -> np.ndarray:
        """Latents [m, i, j, d] of `reference_images`."""
        return self.fit(self.reference_images).latents

    @functools.cached_property
    def channel_std(self) -> np.ndarray:
        """Standard deviation of each latent channel over `reference_latents`: [d] float32."""
        return self.reference_latents.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def image_mse(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] twice, float32 -> [n] float32."""
    return np.square(values - images).mean(axis=(1, 2, 3))


def mean_psnr(mse: np.ndarray) -> float:
    """Mean over images of the PSNR of their errors [n], dB."""
    return float(psnr.psnr(mse).mean(dtype=np.float64))


def scores(mse: np.ndarray) -> dict[str, float]:
    """Both conventions, "psnr" and "psnr_of_mean_mse", of the errors [n] of images."""
    return meta_learning.summarize({"mse": mse, "psnr": psnr.psnr(mse)})


def cell_loss(field, params, latents: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the inner loop's loss, errors [b]) of latents [b, i, j, d], images [b, h, w, c] float32."""
    values = field(params, latents)
    errors = jnp.mean(jnp.square(values - images), axis=(1, 2, 3))
    i, j, _ = field.latent_shape
    return jnp.sum(errors) * (i * j), errors
