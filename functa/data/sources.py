"""Random access to the examples of one split: the interface, and sources in memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from functa.data.read_timeout import prefetch

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to one split of a data set of images or latents. Several threads may read."""

    @property
    def num_examples(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch:
        """Reads examples.

        Args:
          indices: [k] integers.
        Returns:
          Arrays [k, ...]; row k belongs to example indices[k].
        Raises:
          IndexError: an index lies outside [0, num_examples).
        """


class FunctionSource(NamedTuple):
    """A source whose `read` is a function."""

    num_examples: int
    read: Callable[[np.ndarray], Batch]


class InMemorySource:
    """A source of arrays [num_examples, ...] in the memory of the host."""

    def __init__(self, arrays: Batch):
        self.arrays = arrays
        self.num_examples = len(next(iter(arrays.values())))

    def read(self, indices: np.ndarray) -> Batch:
        """See `Source.read`; returns copies."""
        indices = check_indices(indices, self.num_examples)
        return {name: np.take(values, indices, axis=0) for name, values in self.arrays.items()}


def load_into_memory(source: Source, *, block_size: int, threads: int) -> InMemorySource:
    """Reads a whole source, `block_size` examples at a time."""
    count = source.num_examples
    starts = range(0, count, block_size)
    reads = (
        functools.partial(source.read, np.arange(start, min(start + block_size, count)))
        for start in starts
    )
    arrays: Batch = {}
    for start, block in zip(starts, prefetch(reads, threads=threads), strict=True):
        for name, values in block.items():
            if name not in arrays:
                arrays[name] = np.empty((count, *values.shape[1:]), values.dtype)
            arrays[name][start : start + len(values)] = values
    return InMemorySource(arrays or source.read(np.arange(0)))


def check_indices(indices: np.ndarray, num_examples: int) -> np.ndarray:
    """Returns `indices` as int64; NumPy would count negative ones from the end.

    Raises:
      IndexError: an index lies outside [0, num_examples).
    """
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < num_examples:
        raise IndexError(
            f"indices {indices.min()} to {indices.max()} must lie in [0, {num_examples})"
        )
    return indices
