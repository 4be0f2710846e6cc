"""Batches of latents and labels of a functaset, in one order from wherever they are kept.

`cache` changes the speed and nothing else:
    none    records are read from disk and decoded for every batch
    host    the host's memory holds a split as it is stored; a batch is a gather there
    device  the memory of every device holds the whole split; a batch is a gather there, and only
            the numbers of its examples travel
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from functa.data import loader
from functa.data.functaset import format
from functa.data.functaset.reader import FileSource, Functaset, HostSource
from functa.runtime import memory as memory_lib
from functa.runtime import mesh as mesh_lib

CACHES = ("none", "host", "device")
COPIES = ("first", "all")
_NAMES = ("latents", "scale", "label", "mask")  # what models read, of all that a record holds
_SPARED = 0.5  # of a device's memory, for the model
_MOST_NUMBERS = 1 << 31  # examples on devices, where they are counted in int32


class LatentBatches:
    """Batches {"latents" [b, i, j, d] as stored, "scale" [b, d] (int8 only), "label" [b] int32}.

    Args:
      cache: see the module.
      copies: of each training image, "all" augmented ones or the "first", which is the image itself.
      process_index, process_count: which share of every global batch is yielded.
    Raises:
      ValueError: an unknown cache, or splits too large for a device or this machine.
    """

    def __init__(
        self,
        functaset: Functaset,
        *,
        cache: str,
        copies: str,
        process_index: int,
        process_count: int,
    ):
        if cache not in CACHES:
            raise ValueError(f"cache must be {', '.join(CACHES)}, not {cache!r}")
        self._functaset, self._cache, self._copies = functaset, cache, copies
        self._processes = {"process_index": process_index, "process_count": process_count}
        records = {split: functaset.num_examples(split) for split in format.SPLITS}
        if copies == "first":
            records["train"] //= functaset.manifest.config["encode"]["num_augmentations"]
        if problem := no_room(records, functaset.manifest.layout.latent_bytes, cache=cache):
            raise ValueError(problem)
        self._open = functools.cache(self._opened)

    def train(
        self, *, batch_size: int, first_step: int, last_step: int, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Batches of the train split; see pipeline.train_batches."""
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
        """A whole split in order, with "mask" [b] float32; see pipeline.eval_batches."""
        source, finish = self._open(split)
        return map(finish, loader.eval_batches(source, batch_size=batch_size, **self._processes))

    def _opened(self, split: str):
        rows: Any = self._functaset.source(split, "none")
        if split == "train" and self._copies == "first":
            rows = _EveryNth(rows, self._functaset.manifest.config["encode"]["num_augmentations"])
        if self._cache == "none":
            return rows, _chosen
        rows = HostSource(rows)
        if self._cache == "host":
            return rows, _chosen
        # Read in blocks, and dropped once it is on the devices.
        return _Numbers(rows.num_examples), _gather(rows, mesh_lib.make_mesh())


class _EveryNth:
    """Examples 0, n, 2 n, ... of a source."""

    def __init__(self, source: FileSource, n: int):
        self._source, self._n = source, n
        self.num_examples = source.num_examples // n

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._source.read(np.asarray(indices) * self._n)


class _Numbers:
    """A source that reads nothing but which examples were asked for."""

    def __init__(self, num_examples: int):
        self.num_examples = num_examples

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"example": indices.astype(np.int32)}


def _gather(source: HostSource, mesh: jax.sharding.Mesh):
    """{"example": numbers [b], ...} -> the rows of `source`, taken on the devices."""
    rows = _chosen(source.arrays)
    place = mesh_lib.replicated(mesh)
    table = {
        name: jax.make_array_from_process_local_data(place, values, values.shape)
        for name, values in rows.items()
    }

    @functools.partial(jax.jit, out_shardings=mesh_lib.batched(mesh))
    def take(table, example):
        return {name: values[example] for name, values in table.items()}

    def gather(batch):
        batch = mesh_lib.to_devices(mesh, batch)
        return take(table, batch.pop("example")) | batch

    return gather


def _chosen(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in _NAMES if name in batch}


def no_room(records: dict[str, int], latent_bytes: int, *, cache: str) -> str:
    """Why splits of so many records cannot be kept; empty if they can."""
    size = sum(records.values()) * latent_bytes
    if cache == "host" and size > (there := memory_lib.host_bytes()):
        return (
            f"cache=host: the splits have {size:,} bytes of latents for each process, this machine {there:,} "
            "bytes of memory; use none"
        )
    if cache != "device":
        return ""
    if (most := max(records.values())) >= _MOST_NUMBERS:
        return (
            f"cache=device: a split has {most:,} examples, and devices count to {_MOST_NUMBERS - 1:,}; "
            "use host or none"
        )
    memory = jax.local_devices()[0].memory_stats() or {}
    if size > _SPARED * memory.get("bytes_limit", np.inf):
        return (
            f"cache=device: the splits have {size:,} bytes of latents, a device "
            f"{memory['bytes_limit']:,} bytes of memory; use host or none"
        )
    return ""
