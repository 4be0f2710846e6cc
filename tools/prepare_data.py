#!/usr/bin/env python3
"""Turns a published image data set into a TFDS data set in ArrayRecord files, without TensorFlow.

    tools/prepare_data.py mnist   --source=FOLDER_OF_IDX_FILES --data_dir=data
    tools/prepare_data.py cifar10 --source=cifar-10-python.tar.gz --data_dir=data
    tools/prepare_data.py pets    --source=photos --test_fraction=0.2 --data_dir=data

A source is one of: four MNIST-style idx files, packed or not, or their folder; a CIFAR-10 archive
(Python or binary, .tar.gz) or its folder; an .npz with x_train, y_train, x_test, y_test; a folder
with train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), or with CLASS/IMAGE and --test_fraction.
Arrays become PNG in their own order. JPEG and PNG files keep their bytes, in a fixed shuffled
order.

Exit status: 0 the set is written; 1 it is written without the damaged images that are listed; 2
nothing is written, for the reasons that are listed.
"""

import argparse
import functools
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from functa.data import archives, folders, records

_VERSION = "1.0.0"
_SHARD_BYTES = 256 * 2**20
_AHEAD = 256  # images encoded by all cores before they are written in order
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def open_source(
    paths: Sequence[epath.PathLike], report: archives.Report, *, test_fraction: float | None
) -> archives.Archive:
    """Recognises a source by its names and reads it.

    Raises:
      ValueError: it is not there, or nothing that is known.
      archives.DamagedError: it is not whole.
    """
    given = [epath.Path(path) for path in paths]
    missing = [str(path) for path in given if not path.exists()]
    if missing:
        raise ValueError(f"no such file or folder: {', '.join(missing)}")
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(f"--test_fraction must lie between 0 and 1, not {test_fraction}")
    folder = given[0] if len(given) == 1 and given[0].is_dir() else None
    inside = sorted(folder.iterdir()) if folder else given
    idx = [path for path in inside if archives.IDX_NAME.search(path.name) and not path.is_dir()]
    batches = [path for path in inside if archives.CIFAR_NAME.fullmatch(path.name)]
    if folder and not idx and not batches:
        return folders.read_folder(folder, report, test_fraction=test_fraction)
    if test_fraction is not None:
        raise ValueError("--test_fraction is for class folders; this source has its own test split")
    if idx and (folder or len(idx) == len(given)):
        return archives.read_idx(idx, report)
    if folder or (len(given) == 1 and re.search(r"\.(tar|tgz|tar\.gz)$", given[0].name)):
        return archives.read_cifar(given[0], report)
    if len(given) == 1 and given[0].suffix == ".npz":
        return archives.read_npz(given[0], report)
    raise ValueError(f"cannot tell what {', '.join(map(str, given))} is; see --help")


def write(archive: archives.Archive, *, name: str, data_dir: epath.Path) -> epath.Path:
    """Writes DATA_DIR/NAME/1.0.0; the same archive always gives the same bytes.

    Everything is written and read again in a folder beside it, which is renamed at the end.

    Raises:
      FileExistsError: the data set is there.
      OSError, RuntimeError: it cannot be written, such as on a full disk.
    """
    target = data_dir / name / _VERSION
    _refuse_existing(target)
    unfinished = data_dir / name / f"{_VERSION}.unfinished-{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        label = tfds.features.ClassLabel(num_classes=archive.num_classes)
        if archive.class_names:
            label = tfds.features.ClassLabel(names=list(archive.class_names))
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=archive.image_shape, encoding_format=archive.encoding
                ),
                "label": label,
            }
        )
        infos = [
            _write_split(unfinished, name, split, content)
            for split, content in archive.splits.items()
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=unfinished,
            features=features,
            split_infos=infos,
            version=_VERSION,
            filename_template=_TEMPLATE,
            check_data=False,
        )
        builder = tfds.builder_from_directory(unfinished)
        problems = [p for split in archive.splits for p in records.check_files(builder, split)]
        if problems:
            raise OSError("; ".join(problems))
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def _refuse_existing(target: epath.Path) -> None:
    if target.exists():
        raise FileExistsError(
            f"{target} exists and is left as it is; delete it first, or choose another NAME or "
            "--data_dir"
        )


def _write_split(
    directory: epath.Path, name: str, split: str, content: archives.Split
) -> tfds.core.SplitInfo:
    n = len(content.labels)
    shards = max(1, min(n, -(-content.num_bytes // _SHARD_BYTES)))
    ends = [n * (shard + 1) // shards for shard in range(shards)]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    examples = zip(_encoded(content), content.labels, strict=True)
    num_bytes = 0
    for shard, length in enumerate(lengths):
        path = directory / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
        # PNG and JPEG do not shrink further.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for encoded, label in itertools.islice(examples, length):
            record = _record(encoded, int(label))
            num_bytes += len(record)
            writer.write(record)
        writer.close()
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes)


def _record(encoded: bytes, label: int) -> bytes:
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


def _encoded(content: archives.Split) -> Iterator[bytes]:
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(content.labels), _AHEAD):
            yield from pool.map(
                content.read, range(start, min(start + _AHEAD, len(content.labels)))
            )


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="letters, digits and underscores")
    parser.add_argument("--source", nargs="+", action="extend", required=True, metavar="PATH")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="gets DIR/NAME/1.0.0")
    parser.add_argument("--test_fraction", type=float, metavar="PART", help="of each class folder")
    # --source=A B C is to mean --source A B C.
    words = (word.split("=", 1) if word.startswith("--source=") else [word] for word in arguments)
    flags = parser.parse_args(list(itertools.chain.from_iterable(words)))
    report = archives.Report(functools.partial(print, flush=True))
    try:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", flags.name):
            raise ValueError(f"NAME must be like cifar10 or my_photos, not {flags.name!r}")
        if "://" in flags.data_dir:
            raise ValueError(f"write to a local folder, then copy it to {flags.data_dir}")
        data_dir = epath.Path(flags.data_dir)
        _refuse_existing(data_dir / flags.name / _VERSION)
        for left in (data_dir / flags.name).glob(f"{_VERSION}.unfinished-*"):
            report.found(
                str(left), "left by a run that was killed, unless one is at work; delete it"
            )
        archive = open_source(flags.source, report, test_fraction=flags.test_fraction)
        target = write(archive, name=flags.name, data_dir=data_dir)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"prepare_data: nothing is written: {error}", file=sys.stderr)
        return 2
    for split, content in archive.splits.items():
        counts = np.bincount(content.labels, minlength=archive.num_classes)
        print(
            f"{target}: {split}: {len(content.labels)} images, {counts.min()} to {counts.max()} of "
            f"each of {archive.num_classes} classes"
        )
    if archive.skipped:
        print(f"{target}: {archive.skipped} damaged images, listed above, are left out")
    return 1 if archive.skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
