"""Uniform quantizers with one range per channel, and the code length of an ideal entropy coder.

Functasets are stored as `functa.data.functaset.format.quantize` does it; these quantizers
estimate the loss of fewer bits.
"""

from typing import NamedTuple

import numpy as np

# Candidate widths of the range, as fractions of the largest distance from the mean.
_RANGE_FRACTIONS = np.geomspace(1 / 16, 1, 17).astype(np.float32)


class Quantizer(NamedTuple):
    """2^bits bins of equal size in each of k channels; values outside the range are clipped.

    Attributes:
      bits: bits per value.
      low: [k] float32, lower end of the first bin.
      step: [k] float32, size of a bin; 0 for a constant channel.
    """

    bits: int
    low: np.ndarray
    step: np.ndarray

    def encode(self, values: np.ndarray) -> np.ndarray:
        """[..., k] float32 -> [..., k] int32 in [0, 2^bits)."""
        bins = np.floor((values - self.low) / np.where(self.step > 0, self.step, np.float32(1)))
        return np.clip(bins, 0, 2**self.bits - 1).astype(np.int32)

    def decode(self, symbols: np.ndarray) -> np.ndarray:
        """[..., k] integers in [0, 2^bits) -> [..., k] float32, the centers of the bins."""
        return self.low + (symbols.astype(np.float32) + np.float32(0.5)) * self.step


def fit_quantizer(values: np.ndarray, bits: int) -> Quantizer:
    """Fits ranges, centered at the mean of each channel, that minimize the squared error.

    The widest candidate range contains all values. Narrower ones clip outliers and have finer bins,
    which is better the fewer the bits.

    Args:
      values: [n, k] float32, finite, n >= 1.
      bits: bits per value, 1 to 16.
    """
    mean = values.mean(0, dtype=np.float64).astype(np.float32)
    reach = np.abs(values - mean).max(0)
    candidates = [
        Quantizer(bits, mean - width * reach, width * reach * np.float32(2.0 ** (1 - bits)))
        for width in _RANGE_FRACTIONS
    ]
    errors = [
        np.square(q.decode(q.encode(values)) - values).mean(0, dtype=np.float64) for q in candidates
    ]
    best, channels = np.argmin(errors, axis=0), np.arange(values.shape[1])
    low, step = (np.stack([q[part] for q in candidates])[best, channels] for part in (1, 2))
    return Quantizer(bits, low, step)


def code_length(known: np.ndarray, symbols: np.ndarray, levels: int) -> np.ndarray:
    """Estimates the bits that an ideal entropy coder needs, with one frequency table per channel.

    The tables count the symbols in `known`, plus one half for each symbol, so that unseen symbols
    have a finite length. A coder with the same tables cannot be shorter; one with contexts can.

    Args:
      known: [n, k] integers in [0, levels).
      symbols: [m, ..., k] integers in [0, levels).
    Returns:
      [m] float64.
    """
    channels = known.shape[-1]
    offsets = np.arange(channels) * levels
    counts = np.bincount((known + offsets).ravel(), minlength=channels * levels) + 0.5
    lengths = -np.log2(counts / (len(known) + levels / 2))
    return lengths[symbols + offsets].reshape(len(symbols), -1).sum(-1)
