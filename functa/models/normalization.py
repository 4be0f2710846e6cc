"""Latents of unit scale, as downstream models want them, and back.

Source: one number for all is Bauer et al. 2023, one a channel LH-NeF; whitening makes the channels of a cell
uncorrelated too (ZCA, Bell and Sejnowski 1997).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset, Manifest

KINDS = ("scalar", "channel", "whitened")
_COUNTED = (
    16_384  # examples that the covariance is measured on, but no more than of so many numbers:
)
_COUNTED_NUMBERS = 1 << 24  # all of 8x8x16, 256 of 32x32x64
_SMALLEST_VARIANCE = (
    1e-6  # of the largest: below it a direction carries nothing and is not blown up
)


class Normalization(NamedTuple):
    """normalize and its inverse, restore: [b, i, j, d] float32 -> the same shape."""

    normalize: Callable[[jax.Array], jax.Array]
    restore: Callable[[jax.Array], jax.Array]


def make_normalization(functaset: Functaset, *, kind: str) -> Normalization:
    """By the statistics of the training split.

    Args:
      kind: "scalar": z / scalar_std; "channel": (z - mean) / std, both of the manifest; "whitened":
        (z - mean) C^(-1/2), C the covariance [d, d] of the channels, measured on up to 16,384 examples (256 of
        65,536 numbers, which have as many cells).
    Raises:
      ValueError: an unknown kind, or a standard deviation that is not a positive number.
    """
    manifest = functaset.manifest
    if kind == "whitened":
        return _whitened(functaset)
    if kind not in KINDS:
        raise ValueError(f"normalization={kind!r}: known are {', '.join(KINDS)}")
    mean, std = _statistics(manifest, kind)
    bad = np.flatnonzero(~(np.isfinite(std) & (std > 0)))
    if bad.size:
        raise ValueError(
            f"normalization={kind} divides by the functaset's standard deviations, and those of "
            f"channels {bad.tolist()} are {std[bad].tolist()}; use normalization=scalar if the "
            "other channels carry the images, or encode with another field"
        )
    mean, std = mean[None, None, None], std[None, None, None]
    return Normalization(
        lambda latents: (latents - mean) / std, lambda latents: latents * std + mean
    )


def _statistics(manifest: Manifest, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "scalar":
        return np.zeros(1, np.float32), np.asarray([manifest.scalar_std], np.float32)
    return np.asarray(manifest.mean, np.float32), np.asarray(manifest.std, np.float32)


def _whitened(functaset: Functaset) -> Normalization:
    source = functaset.source("train", cache="none")
    if source.num_examples == 0:
        raise ValueError("normalization=whitened measures the training split, which is empty")
    numbers = math.prod(functaset.manifest.latent_shape)
    count = min(_COUNTED, max(1, _COUNTED_NUMBERS // numbers), source.num_examples)
    # Spread over the split, and the same ones whoever asks.
    rows = np.arange(count) * source.num_examples // count
    latents = np.asarray(float32_latents(source.read(rows)), np.float64)
    cells = latents.reshape(-1, latents.shape[-1])
    mean = cells.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(cells, rowvar=False, ddof=0).reshape(len(mean), -1))
    if not (np.isfinite(variances).all() and variances[-1] > 0):
        raise ValueError("normalization=whitened: the latents of the training split do not vary")
    roots = np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances[-1]))
    into = jnp.asarray((axes / roots) @ axes.T, jnp.float32)
    back = jnp.asarray((axes * roots) @ axes.T, jnp.float32)
    centre = mean.astype(np.float32)[None, None, None]
    return Normalization(
        lambda latents: (latents - centre) @ into, lambda latents: latents @ back + centre
    )
