"""Writes an image set as a TFDS data set, shard by shard, and resumes after a kill.

    DATA_DIR/NAME/1.0.0.lock                                    held while a program is writing
                  1.0.0.unfinished/SHARD                        see data/sharded_writer.py
                  1.0.0.unfinished/shard_summaries/SHARD.json   removed at the end
                  1.0.0                                         1.0.0.unfinished, renamed when complete

A shard is a range of a split's images in their order. Damaged images belong to the range but are
not written. So every image is read once, and a resumed run writes the same bytes.
"""

import collections
import contextlib
import functools
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from functa.data import sharded_writer
from functa.data.prepare.sources import EncodedImage, Report, SourceDataset
from functa.data.read_timeout import prefetch
from functa.data.sharded_writer import Shard, ShardedSet, ShardWriter, Summary
from functa.runtime import storage
from functa.runtime.digests import json_digest
from functa.runtime.errors import UserError

# Of the images of a shard or split: numbers of images by "formats" ("JPEG RGB"), by "labels" and by
# "sizes" ("480x640"), and "damaged", {name: reason} of the images that are left out.
Statistics = dict[str, dict[str, Any]]

VERSION = "1.0.0"
DAMAGED = "damaged.txt"
_PACKAGES = ("array_record", "pillow")  # other versions may write other bytes
_SHARD_BYTES = 256 * 2**20
_QUEUED = 4  # images per thread that may wait in memory for their turn to be written


def require_absent(name: str, data_dir: epath.Path) -> None:
    """Raises UserError if the data set exists."""
    target = data_dir / name / VERSION
    if target.exists():
        raise UserError(f"{target} exists; delete it first, or choose another NAME or --data-dir")


def unfinished_folder(name: str, data_dir: epath.Path) -> epath.Path:
    """Folder of a data set that is not complete."""
    return data_dir / name / f"{VERSION}.unfinished"


def write(
    dataset: SourceDataset, *, name: str, data_dir: epath.Path, jobs: int, report: Report
) -> dict[str, Statistics]:
    """Writes DATA_DIR/NAME/1.0.0, or resumes writing it. Equal sources give equal bytes.

    Args:
      jobs: number of threads that read and check images.
    Returns:
      Statistics of every split.
    Raises:
      UserError: the data set exists, another program is writing it, or an earlier run began it from
        another source.
      OSError, RuntimeError: it cannot be written, for example because the disk is full. If a shard
        is finished, `unfinished_folder` keeps it.
    """
    folder = unfinished_folder(name, data_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sharded_set = _sharded_set(folder, dataset, name)
    lock = folder.parent / f"{VERSION}.lock"
    with storage.locked(lock):
        try:
            require_absent(name, data_dir)  # another program may have finished it
            _prepare_folder(sharded_set)
            statistics = _write_set(sharded_set, dataset, jobs=jobs, report=report)
            target = folder.rename(folder.parent / VERSION)
            shutil.rmtree(target / sharded_set.summaries.name)
        finally:
            if not _spec_digests(sharded_set):  # nothing to resume from
                shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
    return statistics


def _sharded_set(folder: epath.Path, dataset: SourceDataset, name: str) -> ShardedSet:
    shards: list[Shard] = []
    for split, source in dataset.splits.items():
        count = max(1, -(-source.num_bytes // _SHARD_BYTES))
        shards += sharded_writer.plan_shards(
            name,
            split,
            num_records=len(source.labels),
            records_per_shard=-(-len(source.labels) // count),
            record_bytes=source.num_bytes / len(source.labels),
        )
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return ShardedSet(
        directory=folder,
        summaries=folder / "shard_summaries",
        shards=shards,
        spec_digest=json_digest([dataset.digest, [shard[:4] for shard in shards], versions]),
        options="group_size:1,uncompressed",  # PNG and JPEG do not shrink further
    )


def _spec_digests(sharded_set: ShardedSet) -> set[str]:
    """Digests in the summaries of an earlier run; damaged summaries are ignored."""
    digests = set()
    for file in sharded_set.summaries.glob("*.json"):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            digests.add(json.loads(file.read_text())["spec_digest"])
    return digests


def _prepare_folder(sharded_set: ShardedSet) -> None:
    """Empties the folder, unless an earlier run has finished shards of the same source.

    Raises:
      UserError: it has finished shards of another source.
    """
    folder, digests = sharded_set.directory, _spec_digests(sharded_set)
    if digests - {sharded_set.spec_digest}:
        raise UserError(
            f"{folder} was begun from another source, with other arguments or with other versions"
            f" of {' and '.join(_PACKAGES)}. Repeat the command that began it to resume, or delete"
            " the folder"
        )
    if not digests:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)


def _write_set(
    sharded_set: ShardedSet, dataset: SourceDataset, *, jobs: int, report: Report
) -> dict[str, Statistics]:
    """Writes the missing shards and the metadata."""
    summaries = sharded_set.finished(sharded_set.shards, compare_digests=True)
    for summary in summaries.values():
        _report_shard(summary, "written by an earlier run", report)
    missing = [shard for shard in sharded_set.shards if shard not in summaries]
    sharded_set.require_space(missing)
    reads = (
        functools.partial(dataset.splits[shard.split].read, index)
        for shard in missing
        for index in range(shard.start, shard.stop)
    )
    # Threads are enough to read and decode: both release the interpreter lock.
    images = prefetch(reads, threads=jobs, queue_size=jobs * _QUEUED)
    with contextlib.closing(images):
        for shard in missing:
            begin = time.monotonic()
            labels = dataset.splits[shard.split].labels[shard.start : shard.stop].tolist()
            summaries[shard] = _write_shard(sharded_set, shard, labels, images)
            speed = shard.num_records / (time.monotonic() - begin)
            _report_shard(summaries[shard], f"{speed:,.0f} images/s", report)
    entries, statistics = {}, {}
    for split in dataset.splits:
        parts = [summaries[shard] for shard in sharded_set.shards if shard.split == split]
        entries[split] = [part["shard"] for part in parts]
        statistics[split] = _merge([part["statistics"] for part in parts])
    _write_metadata(sharded_set.directory, dataset, entries, _merge(statistics.values()))
    return statistics


def _write_shard(
    sharded_set: ShardedSet, shard: Shard, labels: list[int], images: Iterator[EncodedImage]
) -> Summary:
    """Writes the next images to a shard."""
    statistics = _merge([])
    with ShardWriter(sharded_set, shard) as writer:
        # Labels first: zip must not take an image beyond the last label.
        for label, image in zip(labels, images, strict=False):
            if image.damage:
                statistics["damaged"][image.name] = image.damage
                continue
            writer.append([record(image.data, label)])
            height, width = image.size
            statistics["formats"][image.format] += 1
            statistics["labels"][str(label)] += 1  # keys of JSON are text
            statistics["sizes"][f"{height}x{width}"] += 1
        return writer.commit({"statistics": statistics})


def _merge(parts: Iterable[Statistics]) -> Statistics:
    """Statistics of several shards together."""
    merged: Statistics = {key: collections.Counter() for key in ("formats", "labels", "sizes")}
    merged["damaged"] = {}
    for part in parts:
        for key, values in merged.items():
            values.update(part[key])
    return merged


def describe(statistics: Statistics, num_classes: int) -> str:
    """One line about a split."""
    counts = [statistics["labels"][str(label)] for label in range(num_classes)]
    formats = ", ".join(f"{n:,} {name}" for name, n in sorted(statistics["formats"].items()))
    return (
        f"{sum(counts):,} images, {min(counts)} to {max(counts)} of each of {num_classes} classes;"
        f" {formats}"
    )


def _report_shard(summary: Summary, text: str, report: Report) -> None:
    for name, reason in summary["statistics"]["damaged"].items():
        report.info(name, f"left out: {reason}")
    entry = summary["shard"]
    report.info(entry["file"], f"{entry['records']:,} images, {text}")


def record(data: bytes, label: int) -> bytes:
    """The tf.train.Example of an image and its label, as TFDS reads it.

    TFDS's own serializer does not fix the order of the two features.
    """
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(data)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def _write_metadata(
    directory: epath.Path,
    dataset: SourceDataset,
    entries: dict[str, list[Summary]],
    statistics: Statistics,
) -> None:
    """Writes TFDS's metadata and DAMAGED."""
    formats, modes = zip(*(name.split() for name in statistics["formats"]), strict=True)
    sizes = list(statistics["sizes"])
    height, width = map(int, sizes[0].split("x")) if len(sizes) == 1 else (None, None)
    image = tfds.features.Image(
        shape=(height, width, 1 if set(modes) <= {"1", "L"} else 3),
        encoding_format=formats[0].lower() if len(set(formats)) == 1 else None,
    )
    names = list(dataset.class_names) or None
    label = tfds.features.ClassLabel(
        names=names, num_classes=None if names else dataset.num_classes
    )
    sharded_writer.write_tfds_metadata(
        directory,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        shards=entries,
        version=VERSION,
    )
    if statistics["damaged"]:
        text = "".join(f"{name}: {reason}\n" for name, reason in statistics["damaged"].items())
        (directory / DAMAGED).write_bytes(os.fsencode(text))  # file names need not be UTF-8
