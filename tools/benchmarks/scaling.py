#!/usr/bin/env python3
"""Times the training step and the fit of encode on 1, 2, ... processes of this machine.

    python -m tools.benchmarks.scaling --counts=1,2 --config=configs/cifar10_spatial.py:8x8x16,nearest,two_core
    python -m tools.benchmarks.scaling --counts=1,2 --per_process=8 --json

Weak scaling: --per_process images a process. Strong: as many images in all as the largest count has so. The cores
are divided among the processes where there are enough, and one process has as many as each of the
largest count has, so that what is compared differs in the number of processes alone. `all-reduce` is that of the
gradient alone, nothing else going on; `expected` is the step of one process on the same share and that.

--json prints one object a row: kind, processes, images, step_seconds, expected_seconds, allreduce_seconds,
encode_seconds, efficiency (images a second and process, by those of one process), all medians of --repeats.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from functa.fields.fitter import build_fitter
from functa.runtime import distributed, rng
from functa.runtime import mesh as mesh_lib
from functa.training.tasks.builders import build_meta_learning
from functa.training.train_step import ALL_FINITE, initial_state, make_step
from tools.benchmarks.harness import measure, positive

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def work(config: ConfigDict, *, images: int, repeats: int) -> dict[str, float]:
    """Medians of this process, one of several."""
    task = build_meta_learning(config, sources={})
    mesh = mesh_lib.make_mesh()
    place = mesh_lib.replicated(mesh)
    state = jax.jit(functools.partial(initial_state, task), out_shardings=place)(
        rng.stream_key(0, "init")
    )
    share = np.zeros((images // jax.process_count(), *config.data.image_shape), np.uint8)
    share += np.random.default_rng(jax.process_index()).integers(0, 256, share.shape, np.uint8)
    batch = mesh_lib.to_devices(mesh, {"image": share})
    step = make_step(
        task, mesh=mesh, seed=0, ema_decay=0.0, micro_batches=config.meta_learn.micro_batches
    )
    gradient = jax.device_put(ravel_pytree(jax.device_get(state.params))[0], place)
    params = jax.device_get(state.params)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    def allreduce(numbers):
        return jax.lax.pmean(numbers, "data")

    carry = [state, jax.device_put(ALL_FINITE, place)]

    def one_step():
        carry[0], logs, carry[1] = step(carry[0], batch, carry[1])
        return logs

    seconds = measure(
        {
            "step": one_step,
            "allreduce": functools.partial(allreduce, gradient),
            "encode": functools.partial(
                jax.jit(build_fitter(config).encode), params, share / np.float32(255)
            ),
        },
        repeats,
    )
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}


def together(
    processes: int, *, most: int, images: int, arguments: Sequence[str]
) -> dict[str, float]:
    """What process 0 of `processes` measured.

    Raises:
      RuntimeError: one failed; with what it said.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // most
    started = []
    for index in range(processes):
        own = cores[index * share : (index + 1) * share]
        pinned = ["taskset", "-c", ",".join(map(str, own))] if own else []
        several = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        command = [
            *pinned,
            sys.executable,
            "-m",
            "tools.benchmarks.scaling",
            f"--images={images}",
            *arguments,
        ]
        started.append(
            subprocess.Popen(
                command,
                cwd=_ROOT,
                env=os.environ | (several if processes > 1 else {}) | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate() for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(error)
    return json.loads(said[0][0].splitlines()[-1])


def rows(
    counts: Sequence[int], *, per_process: int, arguments: Sequence[str]
) -> list[dict[str, Any]]:
    """What the module's docstring says."""
    run = functools.partial(together, most=max(counts), arguments=arguments)
    alone = {
        images: run(1, images=images) for images in {per_process * max(counts) // n for n in counts}
    }
    found = []
    for kind, total in (("weak", None), ("strong", per_process * max(counts))):
        for count in counts:
            images = total or per_process * count
            share = images // count
            base = alone[share]
            one = run(count, images=images) if count > 1 else base
            of_one = alone[total or per_process]["step_seconds"] / (total or per_process)
            found.append(
                {"kind": kind, "processes": count, "images": images}
                | one
                | {
                    "expected_seconds": base["step_seconds"]
                    + (one["allreduce_seconds"] if count > 1 else 0.0),
                    "efficiency": of_one * images / count / one["step_seconds"],
                }
            )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="1,2", help="numbers of processes, 1 among them")
    parser.add_argument("--per_process", type=positive, default=8, help="images")
    parser.add_argument("--repeats", type=positive, default=10)
    parser.add_argument("--config", default="configs/cifar10_spatial.py:8x8x16,nearest,two_core")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--images", type=positive, help=argparse.SUPPRESS
    )  # of a process of `together`
    arguments = parser.parse_args(argv)
    if arguments.images:
        distributed.initialize()
        name, _, options = arguments.config.partition(":")
        module = importlib.import_module(f"functa.configs.{pathlib.Path(name).stem}")
        config = module.get_config(options)
        print(
            json.dumps(work(config, images=arguments.images, repeats=arguments.repeats)), flush=True
        )
        distributed.complete()
        return 0
    try:
        counts = sorted({positive(count) for count in arguments.counts.split(",")})
    except (ValueError, argparse.ArgumentTypeError):
        counts = []
    if 1 not in counts or any(max(counts) % count for count in counts):
        parser.error(
            f"--counts={arguments.counts}: want numbers that divide the largest, 1 among them"
        )
    passed = [f"--config={arguments.config}", f"--repeats={arguments.repeats}"]
    try:
        found = rows(counts, per_process=arguments.per_process, arguments=passed)
    except RuntimeError as error:
        print(f"bench_scaling: a process failed:\n{error}", file=sys.stderr)
        return 3
    if arguments.json:
        for row in found:
            print(json.dumps(row))
        return 0
    print(
        "| | processes | images | step | expected | all-reduce | encode | efficiency |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for row in found:
        times = " | ".join(
            f"{1000 * row[f'{name}_seconds']:.3g} ms"
            for name in ("step", "expected", "allreduce", "encode")
        )
        print(
            f"| {row['kind']} | {row['processes']} | {row['images']} | {times} | {row['efficiency']:.0%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
