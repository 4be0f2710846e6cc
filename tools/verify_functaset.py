#!/usr/bin/env python3
"""Reads a whole functaset again and says what is damaged.

    tools/verify_functaset.py runs/digits/functaset
    tools/verify_functaset.py runs/digits/functaset --field runs/digits

Found are flipped bytes, missing, truncated and foreign shards, wrong counts, records that cannot be
decoded and, with --field, a functaset that was made with another field.

Exit status: 0 all is as written; 1 every problem is listed with its file; 2 bad arguments.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from functa.data import functaset


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="directory of a functaset, or of a run that holds one")
    parser.add_argument("--field", metavar="RUN", help="run whose field must have made it")
    args = parser.parse_args(argv)
    path = epath.Path(args.path)
    if not path.is_dir():
        parser.error(f"{path} is not a directory")
    if (path / "functaset").is_dir():
        path = path / "functaset"
    digest = None
    if args.field is not None:
        from functa import checkpoint, trained  # JAX is needed only here

        try:
            digest = checkpoint.digest(trained.load_field(args.field)[1])
        except ValueError as error:
            parser.error(str(error))
    problems = functaset.verify(path, field_digest=digest)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", file=sys.stderr)
        return 1
    manifest = functaset.read_manifest(path)
    records = sum(split["examples"] for split in manifest.splits.values())
    print(f"{path}: {records} records in {len(manifest.shards)} shards are as written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
