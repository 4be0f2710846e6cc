#!/usr/bin/env python3
"""Times how fast batches of a functaset come from disk, from the host's memory and from the devices'.

    python -m tools.benchmarks.input                                 a functaset made of noise, 8x8x16, float16
    python -m tools.benchmarks.input --functaset=runs/NAME/functaset the train split of a real one
    python -m tools.benchmarks.input --json --records=100000 --dtype=int8

What is timed is what the stage classify does for a step: the loader of functa/data/pipeline.py, every
array of the batch included, and the transfer to the devices; no model. Turn by turn, so that a
noisy machine disturbs all alike, medians of --repeats turns of --batches batches. The disk is read
through the page cache, which holds a set that was just written or read.

--json prints one object: records_per_second, spread ((max - min) / median) and bytes_per_second of each
of none, host, device (the values of classify.cache); record_bytes, batch_size, repeats, devices.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from functa.data.functaset import (
    format,
    manifest,
    reader,
)
from functa.data.functaset import (
    writer as functaset_writer,
)
from functa.data.functaset.batches import CACHES, LatentBatches
from functa.runtime import mesh as mesh_lib
from functa.runtime.mesh import device_name
from tools.benchmarks.harness import positive


def write_noise(
    directory: epath.PathLike, *, records: int, latent_shape: tuple[int, ...], dtype: str
) -> None:
    """A functaset whose train split is noise and whose other splits are empty."""
    i, j, d = latent_shape
    spec = functaset_writer.FunctasetSpec(
        field_digest="sha256:none",
        config={},
        layout=format.RecordLayout(latent_shape=(i, j, d), dtype=dtype),
        compression="none",
        class_names=(),
        num_records={"train": records, "validation": 0, "test": 0},
        records_per_shard=10_000,
    )
    rng = np.random.default_rng(0)
    for shard in spec.shards:
        with functaset_writer.LatentShardWriter(directory, shard=shard, spec=spec) as writer:
            for start in range(shard.start, shard.stop, 1000):
                ids = np.arange(start, min(start + 1000, shard.stop))
                latents = rng.normal(size=(len(ids), *latent_shape)).astype(np.float32)
                writer.write(
                    latents=latents,
                    label=ids % 10,
                    id=ids,
                    copy=np.zeros_like(ids),
                    psnr=np.full(len(ids), 30, np.float32),
                )
            writer.finish(seconds=0.0)
    manifest.write_manifest(directory, spec)


def seconds_of_batches(
    batches: LatentBatches, mesh: jax.sharding.Mesh, *, batch_size: int, count: int
) -> float:
    """Time of `count` shuffled batches of the train split, on the devices, as training reads them."""
    begin = time.perf_counter()
    for batch in batches.train(batch_size=batch_size, first_step=0, last_step=count, seed=0):
        ready = mesh_lib.to_devices(mesh, batch)
    jax.block_until_ready(ready)
    return time.perf_counter() - begin


def bench(opened: reader.Functaset, *, batch_size: int, count: int, repeats: int) -> dict[str, Any]:
    """What the module's docstring says."""
    mesh = mesh_lib.make_mesh()
    kinds = {
        cache: LatentBatches(opened, cache=cache, copies="all", process_index=0, process_count=1)
        for cache in CACHES
    }
    seconds: dict[str, list[float]] = {cache: [] for cache in kinds}
    for turn in range(repeats + 1):
        for cache, batches in kinds.items():
            took = seconds_of_batches(batches, mesh, batch_size=batch_size, count=count)
            if turn:  # the first opens, fills the cache and compiles
                seconds[cache].append(took)
    record_bytes = opened.manifest.layout.record_bytes
    result: dict[str, Any] = {}
    for cache, values in seconds.items():
        middle = statistics.median(values)
        result[cache] = {
            "records_per_second": batch_size * count / middle,
            "bytes_per_second": batch_size * count * record_bytes / middle,
            "spread": (max(values) - min(values)) / middle,
        }
    return result | {
        "record_bytes": record_bytes,
        "records": opened.num_examples("train"),
        "batch_size": batch_size,
        "repeats": repeats,
        "devices": device_name(),
    }


def latent_shape(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split("x")))
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not three numbers as in 8x8x16")
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--functaset", metavar="FOLDER", help="a complete functaset")
    parser.add_argument("--records", type=positive, default=50_000, help="of noise")
    parser.add_argument("--latent_shape", type=latent_shape, default="8x8x16", help="of noise")
    parser.add_argument(
        "--dtype", choices=format.STORAGE_DTYPES, default="float16", help="of noise"
    )
    parser.add_argument("--batch_size", type=positive, default=256)
    parser.add_argument("--batches", type=positive, default=200, help="a turn")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-input-") as folder:
        try:
            if arguments.functaset is None:
                write_noise(
                    folder,
                    records=arguments.records,
                    latent_shape=arguments.latent_shape,
                    dtype=arguments.dtype,
                )
            opened = reader.open_functaset(arguments.functaset or folder, field_digest=None)
            result = bench(
                opened,
                batch_size=arguments.batch_size,
                count=arguments.batches,
                repeats=arguments.repeats,
            )
        except ValueError as error:
            print(f"bench_input: {error}", file=sys.stderr)
            return 2
    if arguments.json:
        print(json.dumps(result))
        return 0
    for cache in CACHES:
        one = result.pop(cache)
        print(
            f"{cache:<8}{one['records_per_second']:>14,.0f} records/s"
            f"{one['bytes_per_second'] / 1e6:>10,.0f} MB/s   spread {one['spread']:.0%}"
        )
    print("  ".join(f"{name} {value}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
