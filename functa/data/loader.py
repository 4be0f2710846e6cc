"""Batches of a source for training and evaluation.

Threads of Grain map the number of a step to the examples of that step and read them with one call,
so that no Python runs per example. The examples of a step are a function of the seed and
the step alone; they do not depend on the number of processes, on threads or on restarts.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np

from functa.data.read_timeout import with_timeout
from functa.data.sources import Batch, Source
from functa.runtime import rng

# A source in memory is limited by NumPy's gather, a source on disk by decoding. Pillow and ArrayRecord
# release the interpreter lock while they decode.
_THREADS = min(16, os.cpu_count() or 1)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    seed: int,
    process_index: int,
    process_count: int,
    repeats: int = 1,
) -> Iterator[Batch]:
    """Yields this process's share of the batches of steps first_step ... last_step - 1.

    Global batch k holds positions k * batch_size ... (k + 1) * batch_size - 1 of an endless order in
    which every epoch is a new permutation of the split; a batch may span two epochs. Process p
    yields the p-th contiguous part of each global batch.

    Args:
      source: the split; all its arrays are passed on.
      batch_size: global batch size.
      seed: of the order, which also depends on the number of examples.
      repeats: how often every example appears in its batch, one after the other.
    Raises:
      ValueError: the processes do not divide batch_size * repeats.
      InputTimeoutError: a read hangs; raised by the iterator.
    """
    positions = _share(batch_size, process_index, process_count, repeats)

    def read(step: int) -> Batch:
        examples = shuffled_examples(positions(step), num_examples=source.num_examples, seed=seed)
        return source.read(examples)

    batches = grain.MapDataset.range(first_step, last_step).map(read)
    return _prefetch(batches, lambda number: f"step {first_step + number + 1}")  # from one


def eval_batches(
    source: Source, *, batch_size: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """Yields this process's share of the whole split in order, in batches of one shape.

    The last global batch is padded with copies of the last example. All processes yield the same
    number of batches; their parts of batch k, concatenated, are global batch k.

    Yields:
      The arrays of the source, and "mask" [b] float32: 1, or 0 for padding.
    Raises:
      ValueError: the processes do not divide the batch.
      InputTimeoutError: a read hangs; raised by the iterator.
    """
    positions = _share(batch_size, process_index, process_count, repeats=1)

    def read(batch: int) -> Batch:
        rows = positions(batch)
        examples = source.read(np.minimum(rows, source.num_examples - 1))
        return examples | {"mask": (rows < source.num_examples).astype(np.float32)}

    batches = grain.MapDataset.range(-(-source.num_examples // batch_size)).map(read)
    return _prefetch(batches, lambda number: f"batch {number + 1} of an evaluation")


def _share(
    batch_size: int, process_index: int, process_count: int, repeats: int
) -> Callable[[int], np.ndarray]:
    """Returns number of a global batch -> positions of this process's examples, [k] int64."""
    share, remainder = divmod(batch_size * repeats, process_count)
    if remainder:
        raise ValueError(
            f"{process_count} processes do not divide a batch of {batch_size * repeats} examples"
        )
    rows = (process_index * share + np.arange(share, dtype=np.int64)) // repeats
    return lambda number: number * batch_size + rows


def _prefetch(batches: grain.MapDataset, name: Callable[[int], str]) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS + 1)
    return with_timeout(iter(batches.to_iter_dataset(options)), name)


def shuffled_examples(positions: np.ndarray, *, num_examples: int, seed: int) -> np.ndarray:
    """Maps positions [k] int64 of the endless order to examples [k] int64 in [0, num_examples).

    Positions e * num_examples ... (e + 1) * num_examples - 1 are epoch e. Grain's index shuffle
    computes each index in Python, in about 10 microseconds (here: 0.02), and would delay a fast
    device.
    """
    epochs, offsets = np.divmod(positions, num_examples)
    examples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        # At the end of an epoch all threads need the next order at once; one of them sorts it. A
        # million examples take 0.1 s and three times the 8 bytes per example of the order.
        with _SORT_LOCK:
            order = _epoch_order(num_examples, seed, int(epoch))
        examples[inside] = order[offsets[inside]]
    return examples


_SORT_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4)  # prefetching needs two epochs at the end of one
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # Raw bits of a bit generator and a stable sort are the same in every version of NumPy;
    # Generator.permutation may change.
    entropy = np.random.SeedSequence(rng.stream_seed(seed, "order", epoch))
    bits = np.random.Philox(entropy).random_raw(num_examples)
    return np.argsort(bits, kind="stable")
