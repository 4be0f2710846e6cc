"""Numbers in a few bits: a uniform quantiser for each channel, and what an ideal coder would spend.

Functasets are stored as `data.functaset_format.round_latents` says; this is for asking what fewer
bits would cost.
"""

from typing import NamedTuple

import numpy as np

_WIDTHS = np.geomspace(1 / 16, 1, 17)  # tried, as parts of the largest distance from the mean


class Quantiser(NamedTuple):
    """2^bits bins of equal size in each of k channels; values beyond the outermost are clipped.

    bits; low [k] float32, the lower end of the first bin; step [k] float32, the size of a bin, 0
    where a channel is constant.
    """

    bits: int
    low: np.ndarray
    step: np.ndarray

    def symbols(self, values: np.ndarray) -> np.ndarray:
        """[..., k] float32 -> [..., k] int32 in [0, 2^bits)."""
        step = np.where(self.step > 0, self.step, np.float32(1))
        bins = np.floor((values - self.low) / step)
        return np.clip(bins, 0, 2**self.bits - 1).astype(np.int32)

    def restore(self, symbols: np.ndarray) -> np.ndarray:
        """[..., k] integers in [0, 2^bits) -> [..., k] float32, the middles of the bins."""
        return self.low + (symbols.astype(np.float32) + np.float32(0.5)) * self.step


def fit_quantiser(values: np.ndarray, bits: int) -> Quantiser:
    """The uniform quantiser, centred on each channel's mean, of the least squared error.

    Of the widths tried the largest holds all of `values`; smaller ones clip a few far values and
    are finer for all others, which is better the fewer the bits.

    Args:
      values: [n, k] float32, finite.
      bits: a value, 1 to 16.
    Raises:
      ValueError: bits outside that range, or no values.
    """
    if not 1 <= bits <= 16 or not len(values):
        raise ValueError(f"a quantiser of {bits} bits cannot be fitted to {len(values)} values")
    mean = values.mean(0, dtype=np.float64).astype(np.float32)
    reach = np.abs(values - mean).max(0)
    best: Quantiser | None = None
    least = np.full(values.shape[1], np.inf)
    for width in _WIDTHS.astype(np.float32):
        tried = Quantiser(bits, mean - width * reach, width * reach * np.float32(2.0 ** (1 - bits)))
        errors = np.square(tried.restore(tried.symbols(values)) - values).mean(0, dtype=np.float64)
        better = errors < least
        least = np.where(better, errors, least)
        low, step = (best.low, best.step) if best else (tried.low, tried.step)
        best = Quantiser(bits, np.where(better, tried.low, low), np.where(better, tried.step, step))
    assert best is not None
    return best


def packed_bytes(count: int, bits: int) -> int:
    """Of `count` values of `bits` bits, one after the other, filled up to whole bytes."""
    return -(-count * bits // 8)


def code_length(known: np.ndarray, symbols: np.ndarray, levels: int) -> np.ndarray:
    """Bits an ideal entropy coder spends on symbols, its tables counted on others: an estimate.

    Each channel has its own table, of the frequencies in `known`; half a count is added to every
    symbol, so that one never seen has a price. No real coder is below it with the same tables; one
    that learns from neighbouring values may be.

    Args:
      known: [n, k] integers in [0, levels).
      symbols: [m, ..., k] integers in [0, levels).
    Returns:
      [m] float64.
    """
    channels = known.shape[-1]
    offsets = np.arange(channels) * levels
    counts = np.bincount((known + offsets).ravel(), minlength=channels * levels) + 0.5
    prices = -np.log2(counts / (len(known) + levels / 2))
    return prices[symbols + offsets].reshape(len(symbols), -1).sum(-1)
