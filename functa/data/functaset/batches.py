"""Batches of latents and labels of a functaset, for training and evaluation.

`cache` changes the speed only; batches and their order are the same:
    none    records are read from disk and decoded for every batch
    host    the memory of the host holds the split as it is stored; a batch is a gather
    device  the memory of every device holds the whole split; a batch is a gather on the devices, and
            only the indices of its examples are transferred
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from functa.data import loader
from functa.data.functaset import format
from functa.data.functaset.reader import FileSource, Functaset, in_memory
from functa.data.sources import Batch, InMemorySource, Source
from functa.runtime import memory as memory_lib
from functa.runtime import mesh as mesh_lib

CACHES = ("none", "host", "device")
COPIES = ("first", "all")
_NAMES = ("latents", "scale", "label", "mask")  # the arrays that models use
_DEVICE_FRACTION = 0.5  # of the memory of a device; the rest is for the model
_MAX_DEVICE_EXAMPLES = 1 << 31  # examples on devices have int32 indices


class LatentBatches:
    """Batches {"latents" [b, i, j, d] as stored, "scale" [b, d] (int8 only), "label" [b] int32}."""

    def __init__(
        self,
        functaset: Functaset,
        *,
        cache: str,
        copies: str,
        process_index: int,
        process_count: int,
    ):
        """Checks the arguments; the first batch of a split opens it.

        Args:
          functaset: an open functaset.
          cache: one of CACHES; see the module.
          copies: "all" augmented copies of the training images, or only the "first", which is the image
            itself.
          process_index, process_count: the share of every global batch to yield.
        Raises:
          ValueError: the cache is unknown, or the splits do not fit into memory.
        """
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, not {cache!r}")
        self._functaset, self._cache = functaset, cache
        self._processes = {"process_index": process_index, "process_count": process_count}
        records = {split: functaset.num_examples(split) for split in format.SPLITS}
        self._stride = 1  # between training records
        if copies == "first":
            self._stride = functaset.manifest.config["encode"]["num_augmentations"]
            records["train"] //= self._stride
        if problem := memory_problem(records, functaset.manifest.layout.latent_bytes, cache=cache):
            raise ValueError(problem)
        self._open = functools.cache(self._open_split)

    def train(
        self, *, batch_size: int, first_step: int, last_step: int, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Yields batches of the train split; see loader.train_batches."""
        source, finish = self._open("train")
        batches = loader.train_batches(
            source,
            batch_size=batch_size,
            first_step=first_step,
            last_step=last_step,
            seed=seed,
            **self._processes,
        )
        return map(finish, batches)

    def whole(self, split: str, *, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields a split in order, with "mask" [b] float32; see loader.eval_batches."""
        source, finish = self._open(split)
        return map(finish, loader.eval_batches(source, batch_size=batch_size, **self._processes))

    def _open_split(self, split: str) -> tuple[Source, Callable[[Any], Any]]:
        """A source, and a function of the batches that the loader makes of it."""
        records: Any = self._functaset.source(split, "none")
        if split == "train" and self._stride > 1:
            records = _StridedSource(records, self._stride)
        if self._cache == "none":
            return records, _select
        rows = in_memory(records)
        if self._cache == "host":
            return rows, _select
        return _IndexSource(rows.num_examples), _gather(rows, mesh_lib.make_mesh())


class _StridedSource:
    """Examples 0, stride, 2 stride, ... of a source."""

    def __init__(self, source: FileSource, stride: int):
        self._source, self._stride = source, stride
        self.num_examples = source.num_examples // stride

    def read(self, indices: np.ndarray) -> Batch:
        return self._source.read(np.asarray(indices) * self._stride)


class _IndexSource:
    """A source whose examples are their own indices."""

    def __init__(self, num_examples: int):
        self.num_examples = num_examples

    def read(self, indices: np.ndarray) -> Batch:
        return {"index": indices.astype(np.int32)}


def _gather(source: InMemorySource, mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
    """Copies `source` to every device; returns {"index": [b], ...} -> rows, gathered on the devices."""
    replicated = mesh_lib.replicated(mesh)
    table = {
        name: jax.make_array_from_process_local_data(replicated, values, values.shape)
        for name, values in _select(source.arrays).items()
    }

    @functools.partial(jax.jit, out_shardings=mesh_lib.batched(mesh))
    def take(table, index):
        return {name: values[index] for name, values in table.items()}

    def gather(batch):
        batch = mesh_lib.to_devices(mesh, batch)
        return take(table, batch.pop("index")) | batch

    return gather


def _select(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in _NAMES if name in batch}


def memory_problem(records: dict[str, int], latent_bytes: int, *, cache: str) -> str:
    """Reports splits that do not fit into memory; "" if they fit.

    Args:
      records: number of records of each split.
      latent_bytes: of one record.
      cache: one of CACHES.
    """
    size = sum(records.values()) * latent_bytes
    host = memory_lib.host_bytes()
    if cache == "host" and size > host:
        return (
            f"cache=host: the latents need {size:,} bytes in each process, but this machine has {host:,} "
            "bytes of memory; use none"
        )
    if cache != "device":
        return ""
    largest = max(records.values())
    if largest >= _MAX_DEVICE_EXAMPLES:
        return (
            f"cache=device: a split has {largest:,} examples, but at most {_MAX_DEVICE_EXAMPLES - 1:,} can "
            "be indexed; use host or none"
        )
    stats = jax.local_devices()[0].memory_stats() or {}
    if size > _DEVICE_FRACTION * stats.get("bytes_limit", np.inf):
        return (
            f"cache=device: the latents need {size:,} bytes on each device, which has "
            f"{stats['bytes_limit']:,} bytes of memory; use host or none"
        )
    return ""
