#!/usr/bin/env python3
"""Measures compression of functaset records: bytes, and speed of writing and reading.

    python -m tools.benchmarks.compression runs/NAME/functaset
    python -m tools.benchmarks.compression FUNCTASET --dtypes=float16,int8 --kinds=none,zstd,brotli:6 --records=5000

Records of one split are written in each dtype with each kind of compression: those of
config.encode.compression, or any option of ArrayRecord (zstd:LEVEL, brotli:LEVEL, snappy). One thread
then reads them in random order through the page cache. Speeds are medians of --repeats turns. A
functaset of float32 can be measured in every dtype, others in their own.

Prints one JSON object per line: dtype, kind, record_bytes, bytes (of the file, per record), saved
(fraction of record_bytes), write_per_second, read_per_second, spread (of the reading time,
(max - min) / median), records, repeats.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format, reader, writer
from tools.benchmarks.harness import positive, spread

_READ_BATCH_SIZE = 64


def write_seconds(file: epath.Path, records: Sequence[bytes], kind: str) -> float:
    """Time to write packed records with a compression option of ArrayRecord."""
    start = time.perf_counter()
    record_writer = array_record_module.ArrayRecordWriter(str(file), f"group_size:1,{kind}")
    for record in records:
        record_writer.write(record)
    record_writer.close()
    return time.perf_counter() - start


def read_seconds(file: epath.Path, count: int, layout: format.RecordLayout, seed: int) -> float:
    """Time to read and unpack all records in random order."""
    shard = {"file": file.name, "records": count, "bytes": 0, "sha256": ""}
    split = {"examples": count, "shards": [shard]}
    source = reader.FileSource(path=file.parent, split=split, layout=layout)
    order = np.random.default_rng(seed).permutation(count)
    source.read(order[:1])  # opens the file
    start = time.perf_counter()
    for first in range(0, count, _READ_BATCH_SIZE):
        source.read(order[first : first + _READ_BATCH_SIZE])
    return time.perf_counter() - start


def measure(
    folder: epath.Path,
    batch: dict[str, np.ndarray],
    *,
    dtypes: Sequence[str],
    kinds: Sequence[str],
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """Yields one row per dtype and kind for a batch of records."""
    latents = format.float32_latents(batch)
    fields = {name: batch[name] for name in ("label", "id", "copy", "psnr")}
    count = len(latents)
    for dtype in dtypes:
        layout = format.RecordLayout(latents.shape[1:], dtype)
        stored, scale = format.quantize(latents, dtype)
        records = layout.pack(stored=stored, scale=scale, **fields)
        seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        sizes = {}
        for turn in range(repeats):
            for kind in kinds:  # in turns, so that noise of the machine affects all kinds
                file = folder / f"{dtype}-{kind.replace(':', '-')}"
                written = write_seconds(file, records, writer.COMPRESSIONS.get(kind, kind))
                sizes[kind] = file.stat().length
                seconds[kind].append((written, read_seconds(file, count, layout, seed=turn)))
                file.unlink()
        for kind in kinds:
            writing, reading = map(list, zip(*seconds[kind], strict=True))
            median = statistics.median(reading)
            size = sizes[kind] / count
            yield {
                "dtype": dtype,
                "kind": kind,
                "record_bytes": layout.record_bytes,
                "bytes": size,
                "saved": 1 - size / layout.record_bytes,
                "write_per_second": count / statistics.median(writing),
                "read_per_second": count / median,
                "spread": spread(reading, median),
                "records": count,
                "repeats": repeats,
            }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("functaset", help="directory of a complete functaset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--records", type=positive, default=5000, help="the first ones, at most")
    parser.add_argument(
        "--dtypes", default="", metavar="A,B", help="default: that of the functaset"
    )
    parser.add_argument("--kinds", default="none,zstd,zstd:1,zstd:9,snappy,brotli:6", metavar="A,B")
    parser.add_argument("--repeats", type=positive, default=3)
    args = parser.parse_args(argv)
    try:
        functaset = reader.open_functaset(args.functaset, field_digest=None)
        source = functaset.source(args.split, cache="none")
    except ValueError as error:
        parser.error(str(error))
    own = functaset.manifest.dtype
    dtypes = args.dtypes.split(",") if args.dtypes else [own]
    allowed = format.STORAGE_DTYPES if own == "float32" else (own,)
    if unknown := set(dtypes) - set(allowed):
        parser.error(
            f"--dtypes={','.join(sorted(unknown))}: the functaset has dtype {own}; choose from "
            f"{', '.join(allowed)}"
        )
    if not source.num_examples:
        parser.error(f"--split={args.split} has no records")
    batch = source.read(np.arange(min(args.records, source.num_examples)))
    kinds = args.kinds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in measure(
                epath.Path(folder), batch, dtypes=dtypes, kinds=kinds, repeats=args.repeats
            ):
                print(json.dumps(row), flush=True)
        except ValueError as error:  # ArrayRecord does not know the kind
            parser.error(f"--kinds={args.kinds}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
