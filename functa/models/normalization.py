"""Normalization of latents to unit scale for downstream models.

Source: one factor for all values is Bauer et al. 2023, one per channel is LH-NeF. Whitening (ZCA,
Bell and Sejnowski 1997) also makes the channels of a cell uncorrelated.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset

KINDS = ("scalar", "channel", "whitened")
# Limits of the examples that the covariance is measured on: all of 8x8x16, 256 of 32x32x64.
_MAX_EXAMPLES = 16_384
_MAX_VALUES = 1 << 24
# Lower bound of variances relative to the largest one. It avoids amplifying rounding errors.
_MIN_RELATIVE_VARIANCE = 1e-6


class Normalization(NamedTuple):
    """normalize and its inverse, restore: [b, i, j, d] float32 -> the same shape."""

    normalize: Callable[[jax.Array], jax.Array]
    restore: Callable[[jax.Array], jax.Array]


def make_normalization(functaset: Functaset, *, kind: str) -> Normalization:
    """Returns a normalization with the statistics of the training split.

    Args:
      kind: "scalar": z / scalar_std. "channel": (z - mean) / std, statistics of the manifest.
        "whitened": (z - mean) C^(-1/2), where C is the covariance [d, d] of the channels, measured
        on up to 16,384 examples.
    Raises:
      ValueError: an unknown kind, or a standard deviation that is not a positive number.
    """
    manifest = functaset.manifest
    if kind not in KINDS:
        raise ValueError(f"normalization={kind!r} must be one of {', '.join(KINDS)}")
    if kind == "whitened":
        return _whitening(functaset)
    if kind == "scalar":
        mean, std = np.zeros(1, np.float32), np.asarray([manifest.scalar_std], np.float32)
    else:
        mean, std = np.asarray(manifest.mean, np.float32), np.asarray(manifest.std, np.float32)
    invalid = np.flatnonzero(~(np.isfinite(std) & (std > 0)))
    if invalid.size:
        raise ValueError(
            f"normalization={kind} needs positive standard deviations, but channels "
            f"{invalid.tolist()} have {std[invalid].tolist()}: use normalization=scalar, or encode "
            "with another field"
        )
    mean, std = mean[None, None, None], std[None, None, None]
    return Normalization(
        lambda latents: (latents - mean) / std, lambda latents: latents * std + mean
    )


def _whitening(functaset: Functaset) -> Normalization:
    source = functaset.source("train")
    if source.num_examples == 0:
        raise ValueError("normalization=whitened needs training examples; the split is empty")
    values_per_example = math.prod(functaset.manifest.latent_shape)
    count = min(_MAX_EXAMPLES, max(1, _MAX_VALUES // values_per_example), source.num_examples)
    # Evenly spaced, so every process measures the same examples.
    rows = np.arange(count) * source.num_examples // count
    latents = np.asarray(float32_latents(source.read(rows)), np.float64)
    cells = latents.reshape(-1, latents.shape[-1])
    mean = cells.mean(axis=0)
    covariance = np.cov(cells, rowvar=False, ddof=0).reshape(len(mean), -1)
    variances, axes = np.linalg.eigh(covariance)
    if not (np.isfinite(variances).all() and variances[-1] > 0):
        raise ValueError("normalization=whitened: the latents of the training split do not vary")
    stds = np.sqrt(np.maximum(variances, _MIN_RELATIVE_VARIANCE * variances[-1]))
    whiten = jnp.asarray((axes / stds) @ axes.T, jnp.float32)
    color = jnp.asarray((axes * stds) @ axes.T, jnp.float32)
    mean = mean.astype(np.float32)[None, None, None]
    return Normalization(
        lambda latents: (latents - mean) @ whiten, lambda latents: latents @ color + mean
    )
