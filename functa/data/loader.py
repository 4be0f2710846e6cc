"""Batches of anything with `num_examples` and `read(indices)`, for training and for evaluation.

A loader works on whole batches: Grain's threads map the number of a step to the rows of that step
and read them with one call, so that an example costs no Python of its own. What a step holds is a
function of (seed, step) alone; the number of processes, of threads and of earlier restarts cannot
change it.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import grain
import numpy as np

from functa.data.read_timeout import patient
from functa.runtime import rng

Batch = dict[str, np.ndarray]

# Read-ahead, in batches and threads. It changes the speed and nothing else: a source in memory is
# bound by NumPy's gather, a source on disk by decoding, for which Pillow and ArrayRecord leave the
# interpreter lock.
_THREADS = min(16, os.cpu_count() or 1)


class Source(Protocol):
    """Random access to one split: images or functasets."""

    @property
    def num_examples(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch:
        """Row k of every array belongs to example indices[k]."""


def train_batches(
    source: Source,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """This process's share of the batches of steps first_step ... last_step - 1.

    Global batch k is positions k * batch_size ... (k + 1) * batch_size - 1 of an endless order in
    which every epoch is a new permutation of the split; batches run over the ends of epochs.
    Process p yields the p-th contiguous part of each global batch.

    Args:
      source: the split; every key it reads is passed on.
      batch_size: examples a step over all processes.
      seed: of the order, which depends on it and on the number of examples only.
    Raises:
      ValueError: an empty source, a batch that does not divide by the processes, or steps out of
        order.
      InputTimeoutError, while batches are taken: a read does not come back.
    """
    share = _share(batch_size, process_index, process_count)
    if source.num_examples < 1:
        raise ValueError("cannot train on a split of 0 examples")
    if not 0 <= first_step <= last_step:
        raise ValueError(f"steps must satisfy 0 <= first <= last, not {first_step}, {last_step}")

    def read(step: int) -> Batch:
        start = step * batch_size + process_index * share
        positions = np.arange(start, start + share, dtype=np.int64)
        return source.read(shuffled(positions, num_examples=source.num_examples, seed=seed))

    # Steps count from one wherever a person reads of them.
    return _ahead(
        grain.MapDataset.range(first_step, last_step).map(read),
        lambda number: f"step {first_step + number + 1}",
    )


def eval_batches(
    source: Source, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """This process's share of the whole split in order, every batch of the same shape.

    The last global batch is filled with copies of the last example. Every process yields the same
    number of batches; the processes' parts of batch k, one after the other, are global batch k.

    Yields:
      the source's keys and "mask" [b] float32: 1, or 0 for a filled-in row.
    Raises:
      ValueError: a batch that does not divide by the processes.
    """
    share = _share(batch_size, process_index, process_count)

    def read(batch: int) -> Batch:
        start = batch * batch_size + process_index * share
        positions = np.arange(start, start + share, dtype=np.int64)
        rows = source.read(np.minimum(positions, source.num_examples - 1))
        return rows | {"mask": (positions < source.num_examples).astype(np.float32)}

    return _ahead(
        grain.MapDataset.range(-(-source.num_examples // batch_size)).map(read),
        lambda number: f"batch {number + 1} of an evaluation",
    )


def shuffled(positions: np.ndarray, *, num_examples: int, seed: int) -> np.ndarray:
    """Examples at positions of the endless order: [k] int64 -> [k] int64 in [0, num_examples).

    Positions e * num_examples ... (e + 1) * num_examples - 1 are epoch e. Grain's own index
    shuffle computes each index in Python (about 10 microseconds on the machine it was timed on,
    against 0.02 here), which a fast device would wait for.
    """
    epochs, offsets = np.divmod(positions, num_examples)
    examples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        with _ONE_SORTS:
            order = _epoch_order(num_examples, seed, int(epoch))
        examples[inside] = order[offsets[inside]]
    return examples


# Where an epoch ends all threads want the next order at once; a million examples take a tenth of a second and
# three times the order's own 8 bytes each.
_ONE_SORTS = threading.Lock()


@functools.lru_cache(maxsize=4)  # read-ahead works around the end of an epoch
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # Raw bits of a bit generator and a stable sort are the same in every NumPy;
    # Generator.permutation need not be.
    entropy = np.random.SeedSequence(rng.stream_seed(seed, "order", epoch))
    bits = np.random.Philox(entropy).random_raw(num_examples)
    return np.argsort(bits, kind="stable")


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} examples does not divide by {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    return batch_size // process_count


def _ahead(batches: grain.MapDataset, name: Callable[[int], str]) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS + 1)
    return patient(iter(batches.to_iter_dataset(options)), name)
