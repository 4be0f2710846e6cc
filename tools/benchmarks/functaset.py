#!/usr/bin/env python3
"""Writes a functaset of a million records, verifies a sample of it, and reads it shuffled from several processes.

    python -m tools.benchmarks.functaset             1.3 million records of 2x2x4 in 426 shards: as many as ImageNet's
    python -m tools.benchmarks.functaset --records=6000 --latent_shape=32x32x64 --dtype=int8 --shard_megabytes=200

Latents are invented, a function of the record's number, ids begin at 2^40, and no accelerator is used. All else is
what the stages do: the writer of encode in --processes processes, the manifest made of its parts, the verification
of --sample of it, and the loader of classify with cache=none in as many processes, each with its share of every
batch, for --epochs passes. Wanted, and status 1 without it: nothing wrong in the sample, every record as often as
every other (or once more) and with its own latents, and the same batches again from a start in the middle.

--json prints one object: records, shards, record_bytes, bytes_per_record (of the files); write, verify and read with
their seconds and rates, all processes together, through the page cache; peak_bytes of each process, of readers after
each eighth of the steps; problems, the list of what is wrong.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from functa.cli.verify import fraction
from functa.data.functaset import (
    format,
    manifest,
    reader,
    verification,
)
from functa.data.functaset import writer as writer_lib
from functa.data.functaset.batches import LatentBatches
from functa.runtime import memory
from tools.benchmarks.harness import positive
from tools.benchmarks.input import latent_shape

_FIRST_ID = 1 << 40
_BLOCK_NUMBERS = 1 << 20  # latents that are invented at once
_POINTS = 8  # of the steps, after which readers note their memory
_AGAIN = 20  # steps that are read a second time, from a start in the middle


class Work(NamedTuple):
    """What all processes do: the functaset's directory and spec, how it is read."""

    directory: str
    spec: writer_lib.FunctasetSpec
    processes: int
    batch_size: int
    steps: int

    @property
    def records(self) -> int:
        return self.spec.num_records["train"]


class Written(NamedTuple):
    """Seconds that a writer took, inventing included, and its peak bytes."""

    seconds: float
    peak: int


class Read(NamedTuple):
    """What a reader saw: how often each record, digest of the batches that are read again, seconds without the first
    batch, peak bytes of the process at each point, what is wrong."""

    seen: np.ndarray
    digest: str
    seconds: float
    peaks: list[int]
    problems: list[str]


def invented(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Latents [k, i, j, d] float32 in [-1, 1) of records [k] int64: as good as random, the same everywhere."""
    width = int(np.prod(shape))
    keys: Any = numbers.astype(np.uint64)[:, None] * np.uint64(width) + np.arange(
        width, dtype=np.uint64
    )
    keys = (keys + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    high = (keys >> np.uint64(40)).astype(np.float32)  # 24 bits
    return (high / np.float32(1 << 23) - np.float32(1)).reshape(-1, *shape)


def write(work: Work, index: int) -> Written:
    """This process's shards."""
    layout, begin = work.spec.layout, time.perf_counter()
    most = max(1, _BLOCK_NUMBERS // int(np.prod(layout.latent_shape)))
    for shard in work.spec.shards[index :: work.processes]:
        with writer_lib.LatentShardWriter(work.directory, shard=shard, spec=work.spec) as writer:
            for start in range(shard.start, shard.stop, most):
                numbers = np.arange(start, min(start + most, shard.stop))
                writer.write(
                    latents=invented(numbers, layout.latent_shape),
                    label=numbers,
                    id=_FIRST_ID + numbers,
                    copy=np.zeros_like(numbers),
                    psnr=np.full(len(numbers), 30, np.float32),
                )
            writer.finish(seconds=0.0)
    return Written(time.perf_counter() - begin, memory.peak_bytes())


def read(work: Work, index: int, first_step: int, last_step: int) -> Read:
    """This process's share of the batches of the steps."""
    opened = reader.open_functaset(work.directory, field_digest=None)
    batches = LatentBatches(
        opened, cache="none", copies="all", process_index=index, process_count=work.processes
    )
    layout, middle = work.spec.layout, work.steps // 2
    seen, digest = np.zeros(work.records, np.uint8), hashlib.sha256()
    peaks, problems, begin = [], [], 0.0
    points = {first_step + (k + 1) * (last_step - first_step) // _POINTS for k in range(_POINTS)}
    train = batches.train(
        batch_size=work.batch_size, first_step=first_step, last_step=last_step, seed=0
    )
    for step, batch in enumerate(train, first_step):
        if step == first_step:
            begin = time.perf_counter()
        np.add.at(seen, batch["label"], 1)
        if middle <= step < middle + _AGAIN:
            for name in sorted(batch):
                digest.update(batch[name].tobytes())
        own = format.quantize(invented(batch["label"], layout.latent_shape), layout.dtype)
        found = format.float32_latents(batch)
        same = (found == format.dequantize(*own)).reshape(len(found), -1).all(axis=1)
        problems += [
            f"step {step}: record {label} has latents of another" for label in batch["label"][~same]
        ]
        if step + 1 in points:
            peaks.append(memory.peak_bytes())
    return Read(seen, digest.hexdigest(), time.perf_counter() - begin, peaks, problems)


def bench(work: Work, part: float) -> dict[str, Any]:
    """What the module's docstring says."""
    written = _together(write, work)
    write_seconds = max(one.seconds for one in written)
    _, manifest_seconds = _timed(lambda: manifest.write_manifest(work.directory, work.spec))
    opened, open_seconds = _timed(lambda: reader.open_functaset(work.directory, field_digest=None))
    verified, verify_seconds = _timed(
        lambda: verification.verify(work.directory, field_digest=None, fraction=part)
    )
    whole = _together(functools.partial(read, first_step=0, last_step=work.steps), work)
    middle = work.steps // 2
    last = min(middle + _AGAIN, work.steps)
    again = _together(functools.partial(read, first_step=middle, last_step=last), work)
    problems = [*verified.problems, *(problem for one in whole for problem in one.problems)]
    seen = np.sum([one.seen for one in whole], axis=0, dtype=np.int64)
    least = work.steps * work.batch_size // work.records
    if not least <= seen.min() <= seen.max() <= least + 1:
        problems.append(
            f"records were read {seen.min()} to {seen.max()} times, not {least} or one more"
        )
    if [one.digest for one in whole] != [one.digest for one in again]:
        problems.append(f"batches from step {middle} on are others after a start there")
    size = sum(shard["bytes"] for shard in opened.manifest.shards)
    share = (work.steps - 1) * work.batch_size // work.processes
    rate = sum(share / one.seconds for one in whole)
    return {
        "records": work.records,
        "shards": len(work.spec.shards),
        "record_bytes": work.spec.layout.record_bytes,
        "bytes_per_record": size / work.records,
        "processes": work.processes,
        "write": {
            "seconds": write_seconds, "records_per_second": work.records / write_seconds,
            "manifest_seconds": manifest_seconds, "peak_bytes": [one.peak for one in written],
        },
        "verify": {
            "seconds": verify_seconds, "decoded": verified.decoded_records, "hashed_shards": verified.hashed_shards,
        },
        "read": {
            "open_seconds": open_seconds, "batch_size": work.batch_size, "steps": work.steps,
            "records_per_second": rate,
            "bytes_per_second": rate * work.spec.layout.record_bytes,
            "peak_bytes": [one.peaks for one in whole],
        },
        "problems": problems,
    }  # fmt: skip


def _together(function: Callable[..., Any], work: Work) -> list[Any]:
    """function(work, index) of every process, each new: nothing of the work before is in its memory."""
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(work.processes, mp_context=spawn) as pool:
        waited = [pool.submit(function, work, index=k) for k in range(work.processes)]
        return [future.result() for future in waited]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def plan(arguments: argparse.Namespace, directory: str) -> Work:
    records = arguments.records
    layout = format.RecordLayout(arguments.latent_shape, arguments.dtype)
    spec = writer_lib.FunctasetSpec(
        field_digest="sha256:none",
        config={"name": "invented", "seed": 0},
        layout=layout,
        compression=arguments.compression,
        class_names=(),
        num_records={"train": records, "validation": 0, "test": 0},
        records_per_shard=writer_lib.records_per_shard(arguments.shard_megabytes, layout),
    )
    writer_lib.sharded_set(directory, spec).require_space(spec.shards)
    steps = max(2, int(arguments.epochs * records / arguments.batch_size))
    return Work(directory, spec, arguments.processes, arguments.batch_size, steps)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=positive, default=1_300_000)
    parser.add_argument("--latent_shape", type=latent_shape, default="2x2x4")
    parser.add_argument("--dtype", choices=format.STORAGE_DTYPES, default="float16")
    parser.add_argument("--compression", choices=writer_lib.COMPRESSIONS, default="none")
    parser.add_argument("--shard_megabytes", type=float, default=0.4)
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--batch_size", type=positive, default=1024, help="of all processes")
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument(
        "--sample", type=fraction, default=0.01, help="that is verified: 1%% or 0.01"
    )
    parser.add_argument(
        "--directory", metavar="DIR", help="in which to write (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.batch_size % arguments.processes:
        parser.error(
            f"--batch_size={arguments.batch_size} does not divide by {arguments.processes} processes"
        )
    if not 0 < arguments.shard_megabytes < float("inf") or not 0 < arguments.epochs < 250:
        parser.error("--shard_megabytes must be above 0, and --epochs between 0 and 250")
    try:
        with tempfile.TemporaryDirectory(
            prefix="bench-functaset-", dir=arguments.directory
        ) as folder:
            result = bench(plan(arguments, folder), arguments.sample)
    except (ValueError, OSError) as error:
        print(f"bench_functaset: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(result))
    else:
        told(result)
    return 1 if result["problems"] else 0


def told(result: dict[str, Any]) -> None:
    """A line a stage."""
    w, v, r = result["write"], result["verify"], result["read"]
    peaks = " | ".join(" ".join(f"{peak / 1e6:.0f}" for peak in one) for one in r["peak_bytes"])
    print(
        f"{result['records']:,} records in {result['shards']} shards, {result['bytes_per_record']:.1f} bytes each, "
        f"{result['processes']} processes\n"
        f"written   {w['records_per_second']:,.0f} records/s, then the manifest in {w['manifest_seconds']:.1f} s; "
        f"peak {max(w['peak_bytes']) / 1e6:.0f} MB a process\n"
        f"verified  {v['decoded']:,} records and {v['hashed_shards']} shards in {v['seconds']:.1f} s\n"
        f"read      {r['records_per_second']:,.0f} records/s, {r['bytes_per_second'] / 1e6:,.0f} MB/s, "
        f"{r['steps']:,} steps of {r['batch_size']}; opened in {r['open_seconds']:.2f} s\n"
        f"peak MB of each reader, after each eighth: {peaks}"
    )
    print("\n".join(result["problems"]) or "nothing wrong")


if __name__ == "__main__":
    sys.exit(main())
