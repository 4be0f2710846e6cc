"""One shard of an image data set: planned, written, hashed and described."""

import contextlib
import json
import os
from collections.abc import Iterable
from typing import NamedTuple

from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format
from functa.data.prepare import sources, tfds_metadata
from functa.runtime import config, storage

_SHARD_BYTES = 256 * 2**20
_OPTIONS = "group_size:1,uncompressed"  # PNG and JPEG do not shrink further
SET, PARTS = "set", "parts"  # folders of shards and of what describes them


class Shard(NamedTuple):
    """Images [start, stop) of a split; num_bytes: about, of them all."""

    split: str
    file: str
    start: int
    stop: int
    num_bytes: int


class Part(NamedTuple):
    """A finished shard."""

    shard: Shard
    contents: tfds_metadata.Contents


def plan_shards(archive: sources.Archive, name: str) -> list[Shard]:
    """Shards of all splits, of about _SHARD_BYTES and equally many images."""
    shards = []
    for split, content in archive.splits.items():
        n = len(content.labels)
        count = max(1, min(n, -(-content.num_bytes // _SHARD_BYTES)))
        ends = [n * k // count for k in range(count + 1)]
        for k in range(count):
            file = f"{name}-{split}.array_record-{k:05d}-of-{count:05d}"
            part = -(-content.num_bytes // count)
            shards.append(Shard(split, file, ends[k], ends[k + 1], part))
    return shards


def write(
    folder: epath.Path, shard: Shard, examples: Iterable[tuple[int, sources.Sample]]
) -> tfds_metadata.Contents:
    """Writes a shard beside its place."""
    seen, num_bytes = [], 0
    with storage.explain_disk_full(folder / SET / shard.file, shard.num_bytes):
        writer = array_record_module.ArrayRecordWriter(str(_beside(folder, shard)), _OPTIONS)
        try:
            for label, sample in examples:
                if not sample.damage:
                    record = tfds_metadata.record(sample.encoded, label)
                    num_bytes += len(record)
                    writer.write(record)
                seen.append((label, sample._replace(encoded=b"")))
            writer.close()
        except BaseException:
            if writer.is_open():
                with contextlib.suppress(RuntimeError):  # why it failed is known by now
                    writer.close()
            raise
    return tfds_metadata.contents(seen, num_bytes)


def finish(folder: epath.Path, part: Part) -> Part:
    """Hashes and renames a shard, and describes it."""
    beside, file = _beside(folder, part.shard), folder / SET / part.shard.file
    with storage.explain_disk_full(file, part.shard.num_bytes):
        with open(beside, "rb") as stream:
            os.fsync(stream.fileno())  # the part must not outlive the shard when the power fails
        described = {
            "sha256": format.file_digest(beside),
            "contents": part.contents._asdict(),
        }
        beside.replace(file)
        config.write_json(_part_file(folder, part.shard), described)
    return part


def finished(folder: epath.Path, shard: Shard) -> Part | None:
    """The part of a shard that stands finished, its bytes as they were; None if it must be made."""
    file, described = folder / SET / shard.file, _part_file(folder, shard)
    if not (file.exists() and described.exists()):
        return None
    try:
        held = json.loads(described.read_text())
        contents = tfds_metadata.from_json(held["contents"])
        same = held["sha256"] == format.file_digest(file)
    except (ValueError, TypeError, KeyError):
        return None  # a damaged part says nothing of its shard, which is made anew
    return Part(shard, contents) if same else None


def _beside(folder: epath.Path, shard: Shard) -> epath.Path:
    return folder / SET / f"{shard.file}.tmp"


def _part_file(folder: epath.Path, shard: Shard) -> epath.Path:
    return folder / PARTS / f"{shard.file}.json"
