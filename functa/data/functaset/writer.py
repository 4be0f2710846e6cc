"""Writes the shards of a functaset; manifest.py completes the set. reader.py describes the files."""

import dataclasses
import functools
import math
import time
from typing import Any

import numpy as np
from etils import epath

from functa.data import sharded_writer
from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.data.sharded_writer import Shard, ShardedSet, ShardWriter
from functa.runtime import digests

# encode.compression -> ArrayRecord's name of it. Readers find it in the file.
COMPRESSIONS = {"none": "uncompressed", "zstd": "zstd:3"}
SUMMARIES = "shard_summaries"  # directory inside the functaset
_MEGABYTE = 1e6
_BLOCK_NUMBERS = 1 << 21  # latent numbers rounded at once, in 60 MB


def records_per_shard(shard_megabytes: float, layout: RecordLayout) -> int:
    """Records of a shard of about `shard_megabytes` million bytes before compression, at least 1.

    It depends neither on the compression nor on the number of processes, so the shards of a set are
    the same wherever it is written.
    """
    return max(1, round(shard_megabytes * _MEGABYTE) // layout.record_bytes)


def plan_shards(
    num_records: dict[str, int], *, layout: RecordLayout, records_per_shard: int
) -> list[Shard]:
    """Shards of all splits of a functaset, in the order of format.SPLITS."""
    return [
        shard
        for split in format.SPLITS
        for shard in sharded_writer.plan_shards(
            format.NAME,
            split,
            num_records=num_records[split],
            records_per_shard=records_per_shard,
            record_bytes=layout.record_bytes,
        )
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctasetSpec:
    """Everything that determines the bytes of a functaset, given its records.

    Attributes:
      field_digest: digest of the field and the inner learning rates.
      config: JSON values of the config that determine the records.
      layout: layout of a record.
      compression: compression of the shards, one of COMPRESSIONS.
      class_names: names in the order of the labels; empty: unknown, labels are plain integers.
      num_records: records of every split, augmented copies included. Record n of a split is copy
        n % copies of example n // copies.
      records_per_shard: records of every shard but the last of a split.
    """

    field_digest: str
    config: dict[str, Any]
    layout: RecordLayout
    compression: str
    class_names: tuple[str, ...]
    num_records: dict[str, int]
    records_per_shard: int

    def header(self) -> dict[str, Any]:
        """Entries of the manifest that are known before anything is encoded."""
        return {
            "format_version": format.FORMAT_VERSION,
            "field_digest": self.field_digest,
            "latent_shape": list(self.layout.latent_shape),
            "dtype": self.layout.dtype,
            "class_names": list(self.class_names),
            "config": self.config,
        }

    @functools.cached_property
    def shards(self) -> list[Shard]:
        return plan_shards(
            self.num_records, layout=self.layout, records_per_shard=self.records_per_shard
        )


def sharded_set(directory: epath.PathLike, spec: FunctasetSpec) -> ShardedSet:
    """The shards and summaries of a functaset in `directory`."""
    directory = epath.Path(directory)
    digested = spec.header() | {
        "num_records": spec.num_records,
        "records_per_shard": spec.records_per_shard,
        "compression": spec.compression,
    }
    return ShardedSet(
        directory=directory,
        summaries=directory / SUMMARIES,
        shards=spec.shards,
        spec_digest=digests.json_digest(digested),
        # One record per chunk, so that random access reads no neighbors.
        options=f"group_size:1,{COMPRESSIONS[spec.compression]}",
    )


class LatentShardWriter(ShardWriter):
    """Writes one shard of a functaset and the statistics of its records.

    Raises (from any method):
      OSError: see ShardWriter.
      FloatingPointError: latents or PSNR are not finite, or too large for the dtype; names the
        example.
    """

    def __init__(self, directory: epath.PathLike, *, shard: Shard, spec: FunctasetSpec):
        super().__init__(sharded_set(directory, spec), shard)
        self._layout = spec.layout
        self._blocks: list[dict[str, np.ndarray]] = []

    def write(self, *, latents, label, id, copy, psnr) -> None:
        """Appends records.

        Args:
          latents: [k, i, j, d] float32.
          label, id, copy: [k] integers.
          psnr: [k] float32, dB.
        """
        block = max(1, _BLOCK_NUMBERS // math.prod(self._layout.latent_shape))
        for start in range(0, len(latents), block):
            rows = slice(start, start + block)
            self._write_block(latents[rows], label[rows], id[rows], copy[rows], psnr[rows])

    def _write_block(self, latents, label, id, copy, psnr) -> None:
        def require_finite(name: str, values: np.ndarray) -> None:
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                k = int(np.argmin(finite))
                raise FloatingPointError(
                    f"{name} not finite: {self._shard.split} example id {id[k]}, copy {copy[k]}."
                    " Nothing of this shard is kept. Check the field (config.meta_learn) or set"
                    " config.encode.dtype=float32"
                )

        dtype = self._layout.dtype
        require_finite("latents are", latents)
        require_finite("psnr is", psnr)
        stored, scale = format.quantize(latents, dtype)
        rounded = format.dequantize(stored, scale)
        require_finite(f"latents as {dtype} are", rounded)
        self.append(
            self._layout.pack(stored=stored, scale=scale, label=label, id=id, copy=copy, psnr=psnr)
        )
        # Sums per record, not per block: they must not depend on the block size. They take 16 d
        # bytes per record, 3 MB for a shard of 200 MB at 32x32x64.
        values = rounded.reshape(len(rounded), -1, rounded.shape[-1]).astype(np.float64)
        total = values.sum(axis=1)
        np.square(values, out=values)
        self._blocks.append(
            {
                "id": np.asarray(id, np.int64),
                "sum": total,
                "sum_of_squares": values.sum(axis=1),
                "psnr": np.asarray(psnr, np.float64),
            }
        )

    def finish(self, *, seconds: float) -> None:
        """Finishes the shard and writes its summary.

        Args:
          seconds: time that the shard took; stored in the summary.
        Raises:
          ValueError: fewer or more records than planned.
        """
        if self.num_records != self._shard.num_records:
            raise ValueError(
                f"{self._shard.file}: {self.num_records} records written,"
                f" {self._shard.num_records} planned"
            )
        rows = {name: np.concatenate([b[name] for b in self._blocks]) for name in self._blocks[0]}
        self.commit(
            {
                "ids": [int(rows["id"].min()), int(rows["id"].max())],
                "sum": rows["sum"].sum(axis=0).tolist(),
                "sum_of_squares": rows["sum_of_squares"].sum(axis=0).tolist(),
                "psnr_sum": float(rows["psnr"].sum()),
                "mse_sum": float(np.power(10.0, rows["psnr"] / -10).sum()),
                "seconds": seconds,
            }
        )


class ShardSequenceWriter:
    """Writes consecutive blocks of records to shards. Used by the writer thread."""

    def __init__(self, directory: epath.Path, spec: FunctasetSpec):
        self._directory, self._spec = directory, spec
        self._writer: LatentShardWriter | None = None
        self._failed = False
        self._mark = time.perf_counter()

    def append(self, shard: Shard, batch: dict[str, np.ndarray], latents, psnr) -> None:
        """Appends the next records of `shard`; rows of the padding are dropped."""
        if self._failed:
            return  # the failure was raised by an earlier block
        self._failed = True  # until the block is written
        if self._writer is None:
            self._writer = LatentShardWriter(self._directory, shard=shard, spec=self._spec)
        count = len(batch["id"])
        self._writer.write(
            latents=np.asarray(latents)[:count], psnr=np.asarray(psnr)[:count], **batch
        )
        if self._writer.num_records == shard.num_records:
            now = time.perf_counter()
            with self._writer as complete:
                complete.finish(seconds=now - self._mark)
            self._writer, self._mark = None, now
        self._failed = False

    def close(self) -> None:
        """Removes an unfinished shard."""
        if self._writer is not None:
            self._writer.abort()
