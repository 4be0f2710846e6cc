"""`functa prepare`: turns a published image data set into a TFDS data set."""

import argparse
import functools
import re

from etils import epath

from functa.runtime import memory
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Turn an image data set into a TFDS data set in ArrayRecord files, without TensorFlow.

    functa prepare mnist --source=FOLDER_OF_IDX_FILES --data-dir=data
    functa prepare cifar10 --source=cifar-10-python.tar.gz --data-dir=data
    functa prepare pets --source=photos --test-fraction=0.2 --data-dir=data
    functa prepare imagenet2012 --source ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar \\
        --labels=validation_labels.txt --data-dir=data

A source is one of
  - four MNIST-style idx files, compressed or not, or their folder
  - a CIFAR-10 archive, for Python or binary, or its folder
  - an .npz file with x_train, y_train, x_test and y_test
  - a folder of photographs: train/CLASS/IMAGE with test/CLASS/IMAGE or val/CLASS/IMAGE,
    or CLASS/IMAGE with --test-fraction
  - uncompressed tars of such folders, or of one tar per class (ILSVRC2012_img_train.tar); nothing
    is unpacked. A tar without class folders (ILSVRC2012_img_val.tar) needs --labels: a text file
    with one line per image, either CLASS in the order of the sorted file names, or FILE CLASS

Arrays are stored as PNG, in their own order. PNG and JPEG files keep their bytes, in a fixed
shuffled order. Every file is decoded once. Damaged images (truncated, empty, not PNG or JPEG, more
than 8 bits per channel, smaller than --min-side) are left out and listed, on the screen and in
damaged.txt of the data set.

After an interruption, run the same command again: it resumes, and the data set has the same bytes.
Finished shards are kept in DIR/NAME/1.0.0.unfinished.

Exit status: 0 the data set is written; 1 it is written without the damaged images; 2 it is not
written; 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and underscores")
    parser.add_argument("--source", nargs="+", action="extend", required=True, metavar="PATH")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="writes DIR/NAME/1.0.0")
    parser.add_argument(
        "--test-fraction", type=float, metavar="PART", help="part of every class for testing"
    )
    parser.add_argument("--labels", metavar="FILE", help="classes of a tar without class folders")
    parser.add_argument(
        "--min-side", type=int, metavar="PIXELS", help="smallest side of a photograph (default: 1)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="threads (default: one per core)")


def run(args: argparse.Namespace) -> int:
    from functa.data.prepare import source_formats, writer  # these imports take seconds
    from functa.data.prepare.sources import Report

    jobs = memory.usable_cores() if args.jobs is None else args.jobs
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise UserError(f"NAME must look like cifar10 or my_photos, not {args.name!r}")
    if "://" in args.data_dir:
        raise UserError(
            f"--data-dir must be local; copy the data set to {args.data_dir} afterwards"
        )
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    data_dir, report = epath.Path(args.data_dir), Report(functools.partial(print, flush=True))
    try:
        with as_user_errors():
            writer.require_absent(args.name, data_dir)
            dataset = source_formats.open_source(
                args.source,
                report,
                test_fraction=args.test_fraction,
                labels=args.labels,
                min_side=args.min_side,
            )
            splits = writer.write(
                dataset, name=args.name, data_dir=data_dir, jobs=jobs, report=report
            )
    except (OSError, RuntimeError) as error:  # status 1 would mean that the data set is written
        folder = writer.unfinished_folder(args.name, data_dir)
        kept = f"{folder} keeps the finished shards; run the same command to resume"
        raise UserError(f"{error}. {kept if folder.exists() else 'Nothing is written'}") from error
    target = data_dir / args.name / writer.VERSION
    for split, statistics in splits.items():
        print(f"{target}: {split}: {writer.describe(statistics, dataset.num_classes)}")
    num_damaged = sum(len(statistics["damaged"]) for statistics in splits.values())
    if num_damaged:
        print(
            f"{target}: {num_damaged} damaged images are left out; they are listed above and in"
            f" {writer.DAMAGED}"
        )
    return 1 if num_damaged else 0
