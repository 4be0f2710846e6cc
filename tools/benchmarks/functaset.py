"""Measures a functaset of noise: writing, verifying, and reading shuffled batches.

    python -m tools.benchmarks.functaset --records=50000                       CIFAR-10: 8x8x16, float16
    python -m tools.benchmarks.functaset --records=1300000 --latent-shape=2x2x4 --shard-megabytes=0.4
    python -m tools.benchmarks.functaset --records=4000 --latent-shape=32x32x64 --dtype=int8

The writer of the stage encode writes the records, `verify` checks a hundredth of them, and the loader
of the stage classify reads batches with each of its caches (none, host, device) in turns. Files come
from the page cache of the operating system.

Output: records, shards, record_bytes (before compression), file_bytes_per_record,
written_per_second, manifest_seconds, verify_seconds, read_CACHE_per_second and spread_CACHE
((max - min) / median) for each cache, peak_bytes of the process, device.
"""

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from functa.data.functaset import format, manifest, reader, verification, writer
from functa.data.functaset.batches import CACHES, LatentBatches
from functa.runtime import mesh as mesh_lib
from tools.benchmarks import harness

_BLOCK_VALUES = 1 << 20  # latents that are written at once


def write_noise(directory: epath.PathLike, spec: writer.FunctasetSpec) -> None:
    """Writes the train split of a functaset with latents of noise."""
    shape = spec.layout.latent_shape
    block = max(1, _BLOCK_VALUES // int(np.prod(shape)))
    latents = np.random.default_rng(0).normal(size=(block, *shape)).astype(np.float32)
    for shard in spec.shards:
        with writer.LatentShardWriter(directory, shard=shard, spec=spec) as shard_writer:
            for start in range(shard.start, shard.stop, block):
                ids = np.arange(start, min(start + block, shard.stop))
                shard_writer.write(
                    latents=latents[: len(ids)],
                    label=ids % 10,
                    id=ids,
                    copy=np.zeros_like(ids),
                    psnr=np.full(len(ids), 30, np.float32),
                )
            shard_writer.finish(seconds=0.0)


def read_batches(
    functaset: reader.Functaset, *, cache: str, batch_size: int, batches: int
) -> harness.Program:
    """A program that reads shuffled batches and moves them to the devices."""
    latents = LatentBatches(functaset, cache=cache, copies="all", process_index=0, process_count=1)
    mesh = mesh_lib.make_mesh()

    def run():
        ready = None
        for batch in latents.train(batch_size=batch_size, first_step=0, last_step=batches, seed=0):
            ready = mesh_lib.to_devices(mesh, batch)
        return ready

    return run


def measure(args: argparse.Namespace, directory: str) -> dict[str, Any]:
    """The result that the module describes."""
    layout = format.RecordLayout(latent_shape=args.latent_shape, dtype=args.dtype)
    spec = writer.FunctasetSpec(
        field_digest="sha256:none",
        config={"name": "noise", "seed": 0},
        layout=layout,
        compression=args.compression,
        class_names=(),
        num_records={"train": args.records, "validation": 0, "test": 0},
        records_per_shard=writer.records_per_shard(args.shard_megabytes, layout),
    )
    write_seconds = _seconds(lambda: write_noise(directory, spec))
    manifest_seconds = _seconds(lambda: manifest.write_manifest(directory, spec))
    verify = functools.partial(verification.verify, directory, field_digest=None, fraction=0.01)
    verify_seconds = _seconds(verify)
    functaset = reader.open_functaset(directory, field_digest=None)
    reads = {
        cache: read_batches(
            functaset, cache=cache, batch_size=args.batch_size, batches=args.batches
        )
        for cache in args.caches.split(",")
    }
    result: dict[str, Any] = {
        "records": args.records,
        "shards": len(spec.shards),
        "record_bytes": layout.record_bytes,
        "file_bytes_per_record": sum(shard["bytes"] for shard in functaset.manifest.shards)
        / args.records,
        "written_per_second": args.records / write_seconds,
        "manifest_seconds": manifest_seconds,
        "verify_seconds": verify_seconds,
    }
    for cache, seconds in harness.time_interleaved(reads, args.repeats).items():
        count = args.batch_size * args.batches
        result[f"read_{cache}_per_second"] = count / statistics.median(seconds)
        result[f"spread_{cache}"] = harness.spread(seconds)
    return result | {"peak_bytes": harness.peak_bytes(), "device": mesh_lib.device_name()}


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def latent_shape(text: str) -> tuple[int, ...]:
    """Three positive integers such as 8x8x16, for argparse."""
    numbers = tuple(map(int, text.split("x")))
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a shape such as 8x8x16")
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.parser(__doc__, repeats=5)
    parser.add_argument("--records", type=harness.positive, default=50_000)
    parser.add_argument("--latent-shape", type=latent_shape, default="8x8x16")
    parser.add_argument("--dtype", choices=format.STORAGE_DTYPES, default="float16")
    parser.add_argument("--compression", choices=writer.COMPRESSIONS, default="none")
    parser.add_argument("--shard-megabytes", type=float, default=20.0)
    parser.add_argument("--caches", default=",".join(CACHES), help="default: %(default)s")
    parser.add_argument("--batch-size", type=harness.positive, default=256)
    parser.add_argument("--batches", type=harness.positive, default=200, help="in a round")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="functaset-") as directory:
            result = measure(args, directory)
    except ValueError as error:
        parser.error(str(error))
    harness.print_result(result, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
