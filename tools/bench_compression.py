#!/usr/bin/env python3
"""What compression makes of the latents of a functaset: bytes, and how fast records are written and read.

    tools/bench_compression.py runs/NAME/functaset
    tools/bench_compression.py FLOAT32_FUNCTASET --dtypes=float16,int8 --kinds=none,zstd,brotli:6 --records=5000

Records of a split are read into memory and written again, in each dtype with each kind of compression: those of
encode.compression, and any that ArrayRecord knows (zstd:LEVEL, brotli:LEVEL, snappy). Then they are read in random
order by the reader of functasets, through the page cache, by one thread. Turn by turn, medians of --repeats turns.
A set that is stored as float32 can be asked about every dtype, another about its own.

--json prints one object a line: dtype, kind, record_bytes, bytes (of the file a record), saved (as a part of
record_bytes), write_per_second, read_per_second, spread (of reading, (max - min) / median), records, repeats.
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
from benchmark import positive, spread
from etils import epath

from functa.data.functaset import (
    format,
    reader,
)
from functa.data.functaset import (
    writer as functaset_writer,
)

_BATCH = 64


def write_seconds(file: epath.Path, records: Sequence[bytes], kind: str) -> float:
    """Time of writing records that are packed already, with ArrayRecord's name of a compression."""
    begin = time.perf_counter()
    writer = array_record_module.ArrayRecordWriter(str(file), f"group_size:1,{kind}")
    for record in records:
        writer.write(record)
    writer.close()
    return time.perf_counter() - begin


def read_seconds(file: epath.Path, count: int, layout: format.RecordLayout, seed: int) -> float:
    """Time of reading and unpacking all records in random order."""
    shard = {"file": file.name, "records": count, "bytes": 0, "sha256": ""}
    split = {"examples": count, "shards": [shard]}
    source = reader.FileSource(path=file.parent, split=split, layout=layout)
    order = np.random.default_rng(seed).permutation(count)
    source.read(order[:1])  # opens
    begin = time.perf_counter()
    for start in range(0, count, _BATCH):
        source.read(order[start : start + _BATCH])
    return time.perf_counter() - begin


def rows(
    folder: epath.Path,
    read: dict[str, np.ndarray],
    *,
    dtypes: Sequence[str],
    kinds: Sequence[str],
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """What the module's docstring says, a row for each dtype and kind."""
    latents = format.float32_latents(read)
    rest = {name: read[name] for name in ("label", "id", "copy", "psnr")}
    count = len(latents)
    for dtype in dtypes:
        layout = format.RecordLayout(latents.shape[1:], dtype)
        stored, scale = format.round_latents(latents, dtype)
        records = layout.pack(stored=stored, scale=scale, **rest)
        seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        sizes = {}
        for turn in range(repeats):
            for kind in kinds:
                file = folder / f"{dtype}-{kind.replace(':', '-')}"
                option = functaset_writer.COMPRESSIONS.get(kind, kind)
                written = write_seconds(file, records, option)
                sizes[kind] = file.stat().length
                seconds[kind].append((written, read_seconds(file, count, layout, seed=turn)))
                file.unlink()
        for kind in kinds:
            writing = [one for one, _ in seconds[kind]]
            reading = [one for _, one in seconds[kind]]
            middle = statistics.median(reading)
            yield {
                "dtype": dtype, "kind": kind, "record_bytes": layout.record_bytes,
                "bytes": sizes[kind] / count,
                "saved": 1 - sizes[kind] / count / layout.record_bytes,
                "write_per_second": count / statistics.median(writing),
                "read_per_second": count / middle, "spread": spread(reading, middle),
                "records": count, "repeats": repeats,
            }  # fmt: skip


def told(row: dict[str, Any]) -> str:
    return (
        f"{row['dtype']:9}{row['kind']:10}{row['bytes']:12,.1f} bytes a record{row['saved']:8.1%} saved"
        f"{row['write_per_second']:12,.0f} written/s{row['read_per_second']:12,.0f} read/s   "
        f"spread {row['spread']:.0%}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("functaset", help="directory of a complete one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--records", type=positive, default=5000, help="the first ones, at most")
    parser.add_argument("--dtypes", default="", metavar="A,B", help="default: the set's own")
    parser.add_argument("--kinds", default="none,zstd,zstd:1,zstd:9,snappy,brotli:6", metavar="A,B")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        opened = reader.open_functaset(arguments.functaset, field_digest=None)
        source = opened.source(arguments.split, cache="none")
    except ValueError as error:
        parser.error(str(error))
    own = opened.manifest.dtype
    dtypes = arguments.dtypes.split(",") if arguments.dtypes else [own]
    for dtype in dtypes:
        if dtype not in format.STORED_AS or (own != "float32" and dtype != own):
            parser.error(
                f"--dtypes={dtype}: the set is stored as {own}, only of float32 others can be made"
            )
    read = source.read(np.arange(min(arguments.records, source.num_examples)))
    if not len(read["label"]):
        parser.error(f"the split {arguments.split} has no records")
    with tempfile.TemporaryDirectory(prefix="bench-compression-") as folder:
        found = rows(
            epath.Path(folder), read, dtypes=dtypes, kinds=arguments.kinds.split(","),
            repeats=arguments.repeats,
        )  # fmt: skip
        try:
            for row in found:
                print(json.dumps(row) if arguments.json else told(row), flush=True)
        except ValueError as error:  # ArrayRecord's, of a kind that it does not know
            parser.error(f"--kinds={arguments.kinds}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
