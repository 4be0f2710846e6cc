#!/usr/bin/env python3
"""Reads a functaset again, all of it or a sample, and says what is damaged.

    tools/verify_functaset.py runs/digits/functaset
    tools/verify_functaset.py runs/digits/functaset --field runs/digits
    tools/verify_functaset.py gs://bucket/run --sample=1%

Found are flipped bytes, missing, truncated and foreign shards, wrong counts, records that cannot be
decoded and, with --field, a functaset that was made with another field.

--sample=1% (or 0.01) checks manifest and metadata, that all shards are there, of the right size and
no others, all bytes of a hundredth of the shards, and decodes a hundredth of the records of every
shard, at least one; a flipped byte elsewhere is not found. The same set has the same sample.

Exit status: 0 all is as written; 1 every problem is listed with its file; 2 bad arguments.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from functa.data.functaset import verification


def fraction(text: str) -> float:
    """`1%` or `0.01` -> 0.01; for argparse."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a sample looks like 1% or 0.01, at most 1")
    return number


def told(found: verification.Verified) -> str:
    """What was checked and what was not."""
    if (found.digests, found.decoded) == (found.shards, found.records):
        return f"{found.records} records in {found.shards} shards are as written"
    return "\n".join([
        "nothing wrong in a sample",
        f"checked: manifest and metadata; that all {found.shards} shards are there and have their sizes; all bytes of"
        f" {found.digests} of them; {found.decoded} records, some of each shard: decoded, finite, ids in range",
        f"not checked: the digests of {found.shards - found.digests} others, {found.records - found.decoded} records",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="directory of a functaset, or of a run that holds one")
    parser.add_argument("--field", metavar="RUN", help="run whose field must have made it")
    parser.add_argument(
        "--sample", metavar="PART", type=fraction, default=1.0, help="part to read (default: all)"
    )
    args = parser.parse_args(argv)
    path = epath.Path(args.path)
    if not path.is_dir():
        parser.error(f"{path} is not a directory")
    if (path / "functaset").is_dir():
        path = path / "functaset"
    digest = None
    if args.field is not None:
        from functa.pipeline import load
        from functa.training import checkpoint

        try:
            digest = checkpoint.digest(load.load_field(args.field)[1])
        except ValueError as error:
            parser.error(str(error))
    found = verification.verify(path, field_digest=digest, fraction=args.sample)
    for problem in found.problems:
        print(problem)
    if count := len(found.problems):
        print(f"{path}: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
        return 1
    print(f"{path}: {told(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
