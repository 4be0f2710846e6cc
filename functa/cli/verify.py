"""`functa verify`: checks the bytes of a functaset."""

import argparse
import sys

from functa.cli.arguments import add_data_dir, functaset_directory
from functa.data.functaset import verification
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Check the bytes of a functaset, all of them or a sample.

    functa verify runs/digits
    functa verify runs/digits/functaset --field=runs/digits
    functa verify gs://bucket/run --sample=1%

It finds changed bytes, missing, truncated and foreign shards, wrong counts, records that cannot be
decoded and, with --field, a functaset that was encoded with another field.

--sample=1% (or 0.01) checks the manifest, the metadata, and the names and sizes of all shards. It
reads all bytes of 1% of the shards and decodes 1% of the records of every shard, at least one. It
does not find a changed byte elsewhere. The sample of a functaset is the same every time.

Exit status: 0 everything checked is as written; 1 there are problems, one line each; 2 wrong
arguments.
"""


def fraction(text: str) -> float:
    """Parses a part of a whole: `1%` or `0.01` -> 0.01."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1% or 0.01, at most 1")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="directory of a functaset, or of a run that has one")
    parser.add_argument("--field", metavar="RUN", help="run whose field must have encoded it")
    add_data_dir(parser)
    parser.add_argument(
        "--sample", metavar="PART", type=fraction, default=1.0, help="part to read (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    path = functaset_directory(args.path, args.data_dir)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory")
    digest = None if args.field is None else _field_digest(args.field)
    result = verification.verify(path, field_digest=digest, fraction=args.sample)
    for problem in result.problems:
        print(problem)
    if result.problems:
        print(f"{path}: problems: {len(result.problems)}", file=sys.stderr)
        return 1
    if (result.hashed_shards, result.decoded_records) == (result.shards, result.records):
        print(f"{path}: {result.records} records in {result.shards} shards are as written")
    else:
        print(
            f"{path}: no problem in the sample\n"
            f"checked: manifest, metadata, names and sizes of {result.shards} shards, all bytes of"
            f" {result.hashed_shards} shards, {result.decoded_records} records of all shards\n"
            f"not checked: the bytes of {result.shards - result.hashed_shards} shards,"
            f" {result.records - result.decoded_records} records"
        )
    return 0


def _field_digest(workdir: str) -> str:
    from functa.pipeline import load, released  # these imports start JAX
    from functa.training import checkpoint

    with as_user_errors():
        return checkpoint.digest(load.load_field(released.find_run(workdir))[1])
