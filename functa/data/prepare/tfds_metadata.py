"""An image data set as TFDS reads it: the records, what a shard of them holds, and the metadata."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from functa.data import image_records
from functa.data.prepare import sources

VERSION = "1.0.0"
DAMAGED = "damaged.txt"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Contents(NamedTuple):
    """What one or more shards of a split hold.

    Attributes:
      lengths: records of each shard.
      num_bytes: of all records.
      kinds: records by "JPEG RGB", "PNG L" and so on.
      sizes: all heights and widths; not more than two of them are kept.
      labels: records by label.
      damaged: name and reason of every image that was left out.
    """

    lengths: list[int]
    num_bytes: int
    kinds: dict[str, int]
    sizes: list[tuple[int, int]]
    labels: dict[int, int]
    damaged: list[tuple[str, str]]


def record(encoded: bytes, label: int) -> bytes:
    """The tf.train.Example of an image and its label, as TFDS reads it.

    TFDS's own serialiser writes the two in an order that changes from process to process.
    """
    image = _field(1, _field(1, encoded))  # a BytesList
    number = _field(3, _field(1, _varint(label)))  # an Int64List
    features = ((b"image", image), (b"label", number))
    return _field(1, b"".join(_field(1, _field(1, k) + _field(2, v)) for k, v in features))


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf's length-delimited kind."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def contents(examples: Iterable[tuple[int, sources.Sample]], num_bytes: int) -> Contents:
    """Of one shard, from labels and samples, whose bytes are not looked at."""
    kinds: collections.Counter[str] = collections.Counter()
    labels: collections.Counter[int] = collections.Counter()
    sizes, damaged = set(), []
    for label, sample in examples:
        if sample.damage:
            damaged.append((sample.name, sample.damage))
            continue
        kinds[sample.kind] += 1
        labels[label] += 1
        sizes.add(sample.size)
    return Contents(
        [sum(kinds.values())],
        num_bytes,
        dict(sorted(kinds.items())),
        sorted(sizes)[:2],
        dict(sorted(labels.items())),
        damaged,
    )


def together(parts: Sequence[Contents]) -> Contents:
    """Of all shards of a split."""
    kinds: collections.Counter[str] = collections.Counter()
    labels: collections.Counter[int] = collections.Counter()
    for part in parts:
        kinds.update(part.kinds)
        labels.update(part.labels)
    return Contents(
        [length for part in parts for length in part.lengths],
        sum(part.num_bytes for part in parts),
        dict(sorted(kinds.items())),
        sorted({size for part in parts for size in part.sizes})[:2],
        dict(sorted(labels.items())),
        [each for part in parts for each in part.damaged],
    )


def from_json(values: dict[str, Any]) -> Contents:
    """Contents from its fields, as JSON gives them back."""
    held = Contents(**values)
    return held._replace(
        sizes=[(h, w) for h, w in held.sizes],
        labels={int(label): count for label, count in held.labels.items()},
        damaged=[(name, reason) for name, reason in held.damaged],
    )


def write_metadata(
    directory: epath.Path, archive: sources.Archive, splits: dict[str, Contents]
) -> None:
    """Makes a data set of a folder of shards; damaged images are listed in DAMAGED beside it.

    Raises:
      sources.UnusableSourceError: no image of a split is whole.
      OSError: the shards are not what `splits` says.
    """
    for split, held in splits.items():
        if not held.kinds:
            raise sources.UnusableSourceError(f"no image of the split {split} is whole")
    label = tfds.features.ClassLabel(num_classes=archive.num_classes)
    if archive.class_names:
        label = tfds.features.ClassLabel(names=list(archive.class_names))
    kinds = {kind for held in splits.values() for kind in held.kinds}
    sizes = {size for held in splits.values() for size in held.sizes}
    formats = {kind.split()[0].lower() for kind in kinds}
    image = tfds.features.Image(
        shape=(
            *(sizes.pop() if len(sizes) == 1 else (None, None)),
            1 if {kind.split()[1] for kind in kinds} <= {"1", "L"} else 3,
        ),
        encoding_format=formats.pop() if len(formats) == 1 else None,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_infos=[
            tfds.core.SplitInfo(name=split, shard_lengths=held.lengths, num_bytes=held.num_bytes)
            for split, held in splits.items()
        ],
        version=VERSION,
        filename_template=_TEMPLATE,
        check_data=False,
    )
    damaged = [line for held in splits.values() for line in held.damaged]
    if damaged:
        text = "".join(f"{name}: {reason}\n" for name, reason in damaged)
        (directory / DAMAGED).write_bytes(os.fsencode(text))  # file names need not be UTF-8
    builder = tfds.builder_from_directory(directory)
    problems = [
        problem for split in splits for problem in image_records.validate_files(builder, split)
    ]
    if problems:
        raise OSError("; ".join(problems))


def describe(held: Contents, num_classes: int) -> str:
    """A line about a split."""
    counts = np.zeros(num_classes, np.int64)
    for label, count in held.labels.items():
        counts[label] = count
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in held.kinds.items())
    return (
        f"{sum(held.lengths):,} images, {counts.min()} to {counts.max()} of each of {num_classes} "
        f"classes; {kinds}"
    )
