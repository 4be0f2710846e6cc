#!/usr/bin/env python3
"""Turns a published image data set into a TFDS data set in ArrayRecord files, without TensorFlow.

    tools/prepare_data.py mnist    --source=FOLDER_OF_IDX_FILES --data_dir=data
    tools/prepare_data.py cifar10  --source=cifar-10-python.tar.gz --data_dir=data
    tools/prepare_data.py pets     --source=photos --test_fraction=0.2 --data_dir=data
    tools/prepare_data.py imagenet2012 --source=ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar
                                   --labels=validation_labels.txt --data_dir=data

A source is one of: four MNIST-style idx files, packed or not, or their folder; a CIFAR-10 archive
(Python or binary, .tar.gz) or its folder; an .npz with x_train, y_train, x_test, y_test;
photographs in a folder with train/CLASS/IMAGE and test/CLASS/IMAGE (or val/), or with CLASS/IMAGE
and --test_fraction; uncompressed tars of such folders, or of one tar for each class, as
ILSVRC2012_img_train.tar. Tars are read where they lie, nothing is unpacked. A tar of images alone,
as ILSVRC2012_img_val.tar, needs --labels: a text file of a line an image, `CLASS` in the order of
the sorted file names or `FILE CLASS`.

Arrays become PNG in their own order. JPEG and PNG files keep their bytes, in a fixed shuffled
order; which of the two one is, its bytes say, not its name. Each is decoded once; what is damaged
(cut off, empty, no PNG or JPEG, more than 8 bits a channel, smaller than --min_side) is left out
and listed, here and in damaged.txt of the data set.

A run that was stopped or killed goes on when the same command is given again, and ends with the
same bytes. Shards that are finished wait in DIR/NAME/1.0.0.unfinished.

Exit status: 0 the set is written; 1 it is written without the damaged images that are listed; 2
it is not, for the reasons that are listed; 130 after Ctrl-C.
"""

import argparse
import contextlib
import functools
import itertools
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Sequence

from etils import epath

from functa.data.prepare import (
    archives,
    folders,
    photographs,
    sources,
    tars,
    tfds_metadata,
    writer,
)
from functa.runtime import storage


def open_source(
    paths: Sequence[epath.PathLike],
    report: sources.Report,
    *,
    test_fraction: float | None,
    labels: str | None,
    min_side: int | None,
    jobs: int,
) -> sources.Archive:
    """Recognises a source by its names and reads it, of photographs their places alone.

    Args:
      labels: see functa/data/tars.py.
      test_fraction, min_side, jobs: see photographs.archive; min_side None: 1.
    Raises:
      ValueError: it is not there, or nothing that is known, or not what an argument is for.
      sources.UnusableSourceError: it is not whole.
    """
    given = [epath.Path(path) for path in paths]
    named = [*given, *([epath.Path(labels)] if labels else [])]
    missing = [str(path) for path in named if not path.exists()]
    if missing:
        raise ValueError(f"no such file or folder: {', '.join(missing)}")
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(f"--test_fraction must lie between 0 and 1, not {test_fraction}")
    if min_side is not None and min_side < 1:
        raise ValueError(f"--min_side must be at least 1, not {min_side}")
    folder = given[0] if len(given) == 1 and given[0].is_dir() else None
    inside = sorted(folder.iterdir()) if folder else given
    idx = [path for path in inside if archives.IDX_NAME.search(path.name) and not path.is_dir()]
    batches = [path for path in inside if archives.CIFAR_NAME.fullmatch(path.name)]
    of_photographs = functools.partial(
        photographs.archive,
        report=report,
        test_fraction=test_fraction,
        min_side=min_side or 1,
        jobs=jobs,
    )
    if not folder and _of_photographs(given):
        remote = [str(path) for path in given if storage.is_remote(path)]
        if remote:
            raise ValueError(f"tars are read by offset; copy to a disk: {', '.join(remote)}")
        return of_photographs(tars.listing(list(map(str, given)), report, labels=labels))
    if labels is not None:
        raise ValueError("--labels is for a tar of images alone")
    if folder and not idx and not batches:
        return of_photographs(folders.listing(folder, report))
    if test_fraction is not None:
        raise ValueError("--test_fraction is for photographs; this source has its own test split")
    if min_side is not None:
        raise ValueError("--min_side is for photographs; this source is one of arrays")
    if idx and (folder or len(idx) == len(given)):
        return archives.read_idx(idx, report)
    if folder or (len(given) == 1 and re.search(r"\.(tar|tgz|tar\.gz)$", given[0].name)):
        return archives.read_cifar(given[0], report)
    if len(given) == 1 and given[0].suffix == ".npz":
        return archives.read_npz(given[0], report)
    raise ValueError(f"cannot tell what {', '.join(map(str, given))} is; see --help")


def _of_photographs(paths: Sequence[epath.Path]) -> bool:
    """Whether they are tars, and not CIFAR-10's.

    Raises:
      ValueError: they are, but compressed.
    """
    if not all(re.search(r"\.(tar|tgz|tar\.gz)$", path.name) for path in paths):
        return False
    first = ""
    damaged = (EOFError, OSError, tarfile.TarError, zlib.error)  # for its reader to tell
    with contextlib.suppress(*damaged), tarfile.open(paths[0]) as tar:
        first = next((os.path.basename(member.name) for member in tar if member.isreg()), "")
    if first == "readme.html" or archives.CIFAR_NAME.fullmatch(first):
        return False
    packed = [str(path) for path in paths if path.suffix != ".tar"]
    if packed and first:
        raise ValueError(f"{', '.join(packed)}: only the inside of uncompressed tars can be read")
    return not packed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="letters, digits and underscores")
    parser.add_argument("--source", nargs="+", action="extend", required=True, metavar="PATH")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="gets DIR/NAME/1.0.0")
    parser.add_argument("--test_fraction", type=float, metavar="PART", help="of each class")
    parser.add_argument("--labels", metavar="FILE", help="classes of a tar of images alone")
    parser.add_argument("--min_side", type=int, metavar="PIXELS", help="of photographs (1)")
    parser.add_argument("--jobs", type=int, metavar="N", help="threads (one a core)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    # --source=A B C is to mean --source A B C.
    words = (word.split("=", 1) if word.startswith("--source=") else [word] for word in arguments)
    flags = _parser().parse_args(list(itertools.chain.from_iterable(words)))
    report = sources.Report(functools.partial(print, flush=True))
    jobs = len(os.sched_getaffinity(0)) if flags.jobs is None else flags.jobs
    data_dir = epath.Path(flags.data_dir)
    try:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", flags.name):
            raise ValueError(f"NAME must be like cifar10 or my_photos, not {flags.name!r}")
        if "://" in flags.data_dir:
            raise ValueError(f"write to a local folder, then copy it to {flags.data_dir}")
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {jobs}")
        writer.refuse_existing(flags.name, data_dir)
        archive = open_source(
            flags.source,
            report,
            test_fraction=flags.test_fraction,
            labels=flags.labels,
            min_side=flags.min_side,
            jobs=jobs,
        )
        splits = writer.write(archive, name=flags.name, data_dir=data_dir, jobs=jobs, report=report)
    except KeyboardInterrupt:
        print("prepare_data: stopped; the same command goes on", file=sys.stderr)
        return 130
    except writer.IncompleteWriteError as error:
        print(f"prepare_data: not complete: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        print(f"prepare_data: nothing is written: {error}", file=sys.stderr)
        return 2
    target = data_dir / flags.name / tfds_metadata.VERSION
    for split, held in splits.items():
        print(f"{target}: {split}: {tfds_metadata.describe(held, archive.num_classes)}")
    damaged = sum(len(held.damaged) for held in splits.values())
    if damaged:
        print(
            f"{target}: {damaged} damaged images, listed above and in {tfds_metadata.DAMAGED}, are "
            "left out"
        )
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
