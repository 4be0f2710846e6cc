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
from functa.data.functaset.reader import Functaset
from functa.data.sources import FunctionSource, InMemorySource, Source, load_into_memory
from functa.runtime import memory as memory_lib
from functa.runtime import mesh as mesh_lib

CACHES = ("none", "host", "device")
COPIES = ("first", "all")
_NAMES = ("latents", "scale", "label", "mask")  # the arrays that models use
_BLOCK_SIZE = 256  # records decoded at once when a whole split is read
_DEVICE_FRACTION = 0.5  # of the memory of a device; the rest is for the model


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
        """The first batch of a split opens it.

        Args:
          cache: one of CACHES; see the module.
          copies: "all" augmented copies of the training images, or only the "first", which is the image
            itself.
          process_index, process_count: the share of every global batch to yield.
        Raises:
          ValueError: the cache is unknown.
        """
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, not {cache!r}")
        self._functaset, self._cache = functaset, cache
        self._processes = {"process_index": process_index, "process_count": process_count}
        self._stride = 1  # between training records
        if copies == "first":
            self._stride = functaset.manifest.config["encode"]["num_augmentations"]
        self._open = functools.cache(self._open_split)

    def train(
        self, *, batch_size: int, first_step: int, last_step: int, seed: int, repeats: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Yields batches of the train split; see loader.train_batches."""
        source, finish = self._open("train")
        batches = loader.train_batches(
            source,
            batch_size=batch_size,
            first_step=first_step,
            last_step=last_step,
            seed=seed,
            repeats=repeats,
            **self._processes,
        )
        return map(finish, batches)

    def whole(self, split: str, *, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields a split in order, with "mask" [b] float32; see loader.eval_batches."""
        source, finish = self._open(split)
        return map(finish, loader.eval_batches(source, batch_size=batch_size, **self._processes))

    def _open_split(self, split: str) -> tuple[Source, Callable[[Any], Any]]:
        """A source, and a function of the batches that the loader makes of it."""
        stride = self._stride if split == "train" else 1
        records: Any = self._functaset.source(split)
        if stride > 1:
            read = records.read
            records = FunctionSource(
                records.num_examples // stride, lambda indices: read(stride * indices)
            )
        if self._cache == "none":
            return records, _select
        rows = load_into_memory(records, block_size=_BLOCK_SIZE, threads=1)
        if self._cache == "host":
            return rows, _select
        indices = FunctionSource(rows.num_examples, lambda k: {"index": k.astype(np.int32)})
        return indices, _gather(rows, mesh_lib.make_mesh())


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
    if cache == "none":
        return ""
    if cache == "host":
        place, available, alternative = "machine", memory_lib.host_bytes(), "none"
    else:
        stats = jax.local_devices()[0].memory_stats() or {}
        available = _DEVICE_FRACTION * stats.get("bytes_limit", np.inf)
        place, alternative = "device", "host or none"
    size = sum(records.values()) * latent_bytes
    if size <= available:
        return ""
    return (
        f"cache={cache}: the latents need {size:,} bytes, but at most {available:,.0f} bytes of a"
        f" {place} can hold them; use {alternative}"
    )
