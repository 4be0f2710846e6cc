"""Sharded ArrayRecord data sets: plan of the shards, crash-safe writing and resuming.

Image sets and functasets are written by this module:

    DIRECTORY/SHARD.tmp     a shard that is being written
    DIRECTORY/SHARD         a finished shard: synced to disk, then renamed
    SUMMARIES/SHARD.json    size, digest and statistics of a finished shard, written after the rename

A shard counts as finished if its summary carries the `spec_digest` of the set and the file has the
recorded size. Shards are independent of each other, so any process can write any of them, and a
killed process loses only the shard that it was writing.
"""

import contextlib
import errno
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from array_record.python import array_record_module
from etils import epath

from functa.runtime import config, storage
from functa.runtime.digests import file_digest

TEMPORARY = ".tmp"
_RECORD_OVERHEAD = 256  # upper bound of what ArrayRecord adds to a record, 64 KiB blocks included
_SHARD_OVERHEAD = 1 << 17  # index and padding
_COPY_BYTES = 1 << 24  # block size of a copy to an object store

Summary = dict[str, Any]


class Shard(NamedTuple):
    """Records [start, stop) of a split, the file that holds them and an upper bound of its size."""

    split: str
    file: str
    start: int
    stop: int
    max_bytes: int

    @property
    def num_records(self) -> int:
        return self.stop - self.start


def plan_shards(
    name: str, split: str, *, num_records: int, records_per_shard: int, record_bytes: float
) -> list[Shard]:
    """Shards of one split, named as TFDS expects; an empty split has none.

    Args:
      record_bytes: mean size of a record before compression.
    """
    starts = range(0, num_records, records_per_shard)
    shards = []
    for index, start in enumerate(starts):
        stop = min(start + records_per_shard, num_records)
        file = f"{name}-{split}.array_record-{index:05d}-of-{len(starts):05d}"
        max_bytes = math.ceil((stop - start) * (record_bytes + _RECORD_OVERHEAD)) + _SHARD_OVERHEAD
        shards.append(Shard(split, file, start, stop, max_bytes))
    return shards


class ShardedSet(NamedTuple):
    """A data set that is written as shards.

    Attributes:
      directory: directory of the shards, a local path or gs://; summaries: that of the summaries.
      shards: shards of all splits, in order.
      spec_digest: digest of everything that determines the bytes of the shards.
      options: options of ArrayRecordWriter.
    """

    directory: epath.Path
    summaries: epath.Path
    shards: Sequence[Shard]
    spec_digest: str
    options: str

    def summary_file(self, shard: Shard) -> epath.Path:
        return self.summaries / f"{shard.file}.json"

    def finished(
        self, shards: Sequence[Shard], *, compare_digests: bool = False
    ) -> dict[Shard, Summary]:
        """Summaries of those of `shards` that are finished; the others must be written.

        Args:
          compare_digests: read all bytes of the shards too, not only their sizes.
        """
        existing = {file.name for file in self.summaries.glob("*.json")}
        candidates = [shard for shard in shards if self.summary_file(shard).name in existing]
        read = functools.partial(self._read_summary, compare_digests=compare_digests)
        summaries = zip(candidates, storage.thread_map(read, candidates), strict=True)
        return {shard: summary for shard, summary in summaries if summary is not None}

    def _read_summary(self, shard: Shard, *, compare_digests: bool) -> Summary | None:
        file = self.directory / shard.file
        try:
            summary = json.loads(self.summary_file(shard).read_text())
            entry = summary["shard"]
            if summary["spec_digest"] != self.spec_digest or entry["bytes"] != file.stat().length:
                return None
            return None if compare_digests and entry["sha256"] != file_digest(file) else summary
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # a damaged summary says nothing about its shard

    def require_space(self, shards: Sequence[Shard]) -> None:
        """Raises OSError (ENOSPC), with both numbers, if the disk has no room for `shards`.

        Shards for an object store are spooled to a local disk one at a time.
        """
        directory = self.directory
        if storage.is_remote(directory):
            shards = sorted(shards, key=lambda shard: shard.max_bytes)[-1:]
            directory = epath.Path(tempfile.gettempdir())
        needed = sum(shard.max_bytes for shard in shards)
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{len(shards)} shards need up to {needed:,} bytes, but only {free:,} are free;"
                " free some space or choose another directory",
                str(directory),
            )


class ShardWriter:
    """Writes one shard. Unless `commit` returns, it leaves neither a shard nor a summary.

    A context manager; `num_records` counts the records written so far.

    Raises (from any method):
      OSError: no space left (ENOSPC, EDQUOT, EFBIG); names the file and the bytes it needs.
    """

    def __init__(self, sharded_set: ShardedSet, shard: Shard):
        self._set, self._shard = sharded_set, shard
        self._file = sharded_set.directory / shard.file
        # ArrayRecord writes local files only: shards for an object store are copied there.
        remote = storage.is_remote(sharded_set.directory)
        self._spool = tempfile.mkdtemp(prefix="functa-shard-") if remote else None
        beside = epath.Path(self._spool or sharded_set.directory)
        self._temporary = beside / f"{shard.file}{TEMPORARY}"
        self.num_records = 0
        with self._explain_disk_full():
            self._writer = array_record_module.ArrayRecordWriter(
                str(self._temporary), sharded_set.options
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()

    def append(self, records: Iterable[bytes]) -> None:
        """Appends records."""
        with self._explain_disk_full():
            for record in records:
                self._writer.write(record)
                self.num_records += 1

    def commit(self, statistics: dict[str, Any]) -> Summary:
        """Syncs, hashes and renames the shard, then writes its summary.

        Args:
          statistics: JSON values that the summary holds beside the shard's size and digest.
        """
        summary_file = self._set.summary_file(self._shard)
        with self._explain_disk_full():
            self._writer.close()
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())  # the summary must not survive a power cut alone
            entry = {
                "file": self._shard.file,
                "records": self.num_records,
                "bytes": self._temporary.stat().length,
                "sha256": file_digest(self._temporary),
            }
            summary_file.unlink(missing_ok=True)  # it describes an earlier file
            if self._spool is None:
                self._temporary.replace(self._file)
            else:
                with self._temporary.open("rb") as source, self._file.open("wb") as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)
            summary = {"spec_digest": self._set.spec_digest, "shard": entry, **statistics}
            summary_file.parent.mkdir(parents=True, exist_ok=True)
            config.write_json(summary_file, summary)
        return summary

    def abort(self) -> None:
        """Removes the temporary files."""
        if self._writer.is_open():
            with contextlib.suppress(RuntimeError):  # closing after a failed write fails again
                self._writer.close()
        self._temporary.unlink(missing_ok=True)
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)

    def _explain_disk_full(self) -> contextlib.AbstractContextManager[None]:
        return storage.explain_disk_full(self._file, self._shard.max_bytes)


def write_tfds_metadata(
    directory: epath.Path, *, features: Any, shards: dict[str, list[dict[str, Any]]], **info: Any
) -> None:
    """Writes dataset_info.json and features.json, which make a TFDS data set of the shards.

    Args:
      features: a tfds.features.FeaturesDict.
      shards: {split: `shard` entries of the summaries}; empty splits are left out.
      info: further arguments of tfds.folder_dataset.write_metadata.
    """
    import tensorflow_datasets as tfds  # the import takes a second, which readers need not wait

    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[entry["records"] for entry in entries],
            num_bytes=sum(entry["bytes"] for entry in entries),
        )
        for split, entries in shards.items()
        if entries
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=splits,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,  # the check needs TensorFlow
        **info,
    )
