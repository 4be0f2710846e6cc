"""Writing a functaset, shard by shard, so that a killed writer loses one shard at most.

A shard is written beside, hashed, renamed, and then described in a part file; the manifest is made
from all parts at the end (functaset_manifest.py; functaset.py lists the files). What a set is made
from has an `identity`; a shard whose part has another one counts as not written.
"""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import tempfile
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.runtime import config as config_lib
from functa.runtime import digests, storage

# encode.compression -> ArrayRecord's name of it. Other programs need not be told: every file says it itself.
COMPRESSIONS = {"none": "uncompressed", "zstd": "zstd:3"}
_MEGABYTE = 1e6
_BLOCK_NUMBERS = 1 << 21  # rounded and summed at once, in 60 MB, however many come in a batch
_RECORD_OVERHEAD = 256  # bytes that ArrayRecord adds to a record at most, 64 KiB blocks included
_COPY_BYTES = 1 << 24  # at a time, to an object store
_SHARD_OVERHEAD = 1 << 17  # bytes of index and padding of a shard


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records [start, stop) of a split, counted as example * copies + copy."""

    split: str
    index: int
    num_shards: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return format.shard_name(self.split, self.index, self.num_shards)

    @property
    def records(self) -> int:
        return self.stop - self.start


def records_per_shard(shard_megabytes: float, layout: RecordLayout) -> int:
    """Of a shard of so many million bytes before compression, at least 1.

    Neither compression nor the number of processes counts: whoever makes a set, it has the same shards.
    """
    return max(1, round(shard_megabytes * _MEGABYTE) // layout.record_bytes)


def plan_shards(num_records: dict[str, int], records_per_shard: int) -> list[Shard]:
    """Shards of all splits, in the order of SPLITS; a split without records has none."""
    shards = []
    for split in format.SPLITS:
        starts = range(0, num_records[split], records_per_shard)
        shards += [
            Shard(split, k, len(starts), start, min(start + records_per_shard, num_records[split]))
            for k, start in enumerate(starts)
        ]
    return shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a functaset is made from and in which form.

    Attributes:
      field_digest: of the field and the inner rates.
      config: JSON values that decide what the records hold.
      layout: of the records.
      compression: of the shards, one of COMPRESSIONS.
      class_names: in the order of the labels; none: unknown, labels are stored as plain integers.
      num_records: records of every split.
    """

    field_digest: str
    config: dict[str, Any]
    layout: RecordLayout
    compression: str
    class_names: tuple[str, ...]
    num_records: dict[str, int]

    def header(self) -> dict[str, Any]:
        """The part of the manifest that is known before anything is encoded."""
        return {
            "format_version": format.FORMAT_VERSION,
            "field_digest": self.field_digest,
            "latent_shape": list(self.layout.latent_shape),
            "dtype": self.layout.dtype,
            "class_names": list(self.class_names),
            "config": self.config,
        }

    @property
    def identity(self) -> str:
        """Digest of all that decides the bytes of a shard with given records."""
        others = {"num_records": self.num_records, "compression": self.compression}
        return digests.json_digest(self.header() | others)

    @property
    def options(self) -> str:
        """ArrayRecord's; one record a chunk, so that random access reads no neighbours."""
        return f"group_size:1,{COMPRESSIONS[self.compression]}"


class ShardWriter:
    """Writes one shard; a context manager that leaves nothing behind unless `finish` was reached.

    Attributes:
      count: records written so far.
    Raises (at any step):
      OSError: ENOSPC, EDQUOT or EFBIG: no room; names the file and the bytes the shard needs.
      FloatingPointError: latents or psnr not finite, or too large for the dtype; names the example.
    """

    def __init__(self, directory: epath.PathLike, *, shard: Shard, recipe: Recipe):
        self._shard, self._recipe = shard, recipe
        self._file = epath.Path(directory) / shard.file
        # ArrayRecord writes local files only: what is for an object store is written here and copied.
        self._spool = (
            tempfile.mkdtemp(prefix="functaset-") if storage.is_remote(directory) else None
        )
        beside = epath.Path(self._spool or directory)
        self._temporary = beside / (shard.file + format.TEMPORARY)
        self._blocks: list[dict[str, np.ndarray]] = []
        self.count = 0
        with self._naming_a_full_disk():
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._temporary), recipe.options
            )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error) -> None:
        self.abort()

    def abort(self) -> None:
        """Removes what is unfinished; nothing to do after `finish`."""
        if self._writer.is_open():
            with contextlib.suppress(
                RuntimeError
            ):  # it is thrown away; why it failed is known by now
                self._writer.close()
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        self._temporary.unlink(missing_ok=True)
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)

    def write(self, *, latents, label, id, copy, psnr) -> None:
        """Appends records.

        Args:
          latents: [k, i, j, d] float32.
          label, id, copy: [k] integers.
          psnr: [k] float32, dB.
        """
        most = max(1, _BLOCK_NUMBERS // math.prod(self._recipe.layout.latent_shape))
        for start in range(0, len(latents), most):
            rows = slice(start, start + most)
            self._write_block(latents[rows], label[rows], id[rows], copy[rows], psnr[rows])

    def _write_block(self, latents, label, id, copy, psnr) -> None:
        split, dtype = self._shard.split, self._recipe.layout.dtype
        _require_finite("latents are", latents, split=split, id=id, copy=copy)
        _require_finite("psnr is", psnr, split=split, id=id, copy=copy)
        stored, scale = format.quantize(latents, dtype)
        rounded = format.dequantize(stored, scale)
        _require_finite(f"latents as {dtype} are", rounded, split=split, id=id, copy=copy)
        packed = self._recipe.layout.pack(
            stored=stored, scale=scale, label=label, id=id, copy=copy, psnr=psnr
        )
        with self._naming_a_full_disk():
            for record in packed:
                self._writer.write(record)
        # Sums of each record and not of the block: however a shard was cut into blocks, its sums are the same.
        # Until the end they take 16 d bytes a record: 3 MB of a shard of 200 MB at 32x32x64.
        flat = rounded.reshape(len(rounded), -1, rounded.shape[-1]).astype(np.float64)
        total = flat.sum(axis=1)
        np.square(flat, out=flat)
        self._blocks.append(
            {
                "id": np.asarray(id, np.int64),
                "sum": total,
                "sum_of_squares": flat.sum(axis=1),
                "psnr": np.asarray(psnr, np.float64),
            }
        )
        self.count += len(packed)

    def finish(self, *, seconds: float) -> None:
        """Closes, hashes and renames the shard, and writes its part.

        Args:
          seconds: that its making took; kept in the part.
        """
        shard = self._shard
        if self.count != shard.records:
            raise ValueError(f"{self._file}: {self.count} records written, {shard.records} planned")
        with self._naming_a_full_disk():
            self._writer.close()
            with open(self._temporary, "rb") as stream:
                os.fsync(
                    stream.fileno()
                )  # the part must not outlive the shard when the power fails
            digest = format.file_digest(self._temporary)
            size = self._temporary.stat().length
            # A part of an earlier making must not vouch for the new shard.
            part_file(self._file.parent, shard).unlink(missing_ok=True)
            if self._spool is None:
                self._temporary.replace(self._file)
            else:
                with self._temporary.open("rb") as source, self._file.open("wb") as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)
        self._remove_temporary()
        rows = {name: np.concatenate([b[name] for b in self._blocks]) for name in self._blocks[0]}
        part = {
            "identity": self._recipe.identity,
            "shard": {
                "file": shard.file,
                "records": shard.records,
                "bytes": size,
                "sha256": digest,
                "ids": [int(rows["id"].min()), int(rows["id"].max())],
            },
            "sum": rows["sum"].sum(axis=0).tolist(),
            "sum_of_squares": rows["sum_of_squares"].sum(axis=0).tolist(),
            "psnr_sum": float(rows["psnr"].sum()),
            "mse_sum": float(np.power(10.0, rows["psnr"] / -10).sum()),
            "seconds": seconds,
        }
        with self._naming_a_full_disk():
            file = part_file(self._file.parent, shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            config_lib.write_json(file, part)

    def _naming_a_full_disk(self):
        return storage.explain_disk_full(
            self._file, estimated_bytes([self._shard], self._recipe.layout)
        )


def estimated_bytes(shards: list[Shard], layout: RecordLayout) -> int:
    """Upper bound of the bytes that shards take; compression makes them smaller."""
    records = sum(shard.records for shard in shards)
    return records * (layout.record_bytes + _RECORD_OVERHEAD) + len(shards) * _SHARD_OVERHEAD


def require_space(directory: epath.PathLike, shards: list[Shard], layout: RecordLayout) -> None:
    """Raises OSError ENOSPC with the numbers if the disk has no room for shards, or, where they go to an object
    store, this machine none for the largest."""
    if storage.is_remote(directory):
        shards = sorted(shards, key=lambda shard: shard.records)[-1:]
        directory = tempfile.gettempdir()
    needed = estimated_bytes(shards, layout)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{len(shards)} shards need up to {needed:,} bytes, {free:,} are free; make room, choose"
            " another workdir or a smaller config.encode.dtype",
            str(directory),
        )


def part_file(directory: epath.Path, shard: Shard) -> epath.Path:
    """Where a finished shard is described."""
    return directory / format.PARTS / f"{shard.file}.json"


def _require_finite(what: str, values: np.ndarray, *, split: str, id, copy) -> None:
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        k = int(np.argmax(bad))
        raise FloatingPointError(
            f"{what} not finite: {split} example id {id[k]}, copy {copy[k]}; nothing of this shard is"
            " kept. Check the field (config.meta_learn) or store wider numbers"
            " (config.encode.dtype=float32)"
        )
