"""Times the meta-learning step and the encoding on 1, 2, ... processes of this machine.

    python -m tools.benchmarks.scaling --processes=2
    python -m tools.benchmarks.scaling --processes=2 --per-process=8 --config=digits --json

Weak scaling: --per-process images for each process. Strong scaling: as many images in all as the
largest number of processes has. The cores are divided among the processes, and a single process has
as many cores as each of several, so that only the number of processes differs.

Prints one row for each kind and number of processes: images, step_seconds, allreduce_seconds (of the
gradient, alone), expected_seconds (the step of one process with the same share, and the all-reduce),
encode_seconds, efficiency (images per second and process, relative to one process); medians.
"""

import argparse
import functools
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
from tools.benchmarks import harness

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def measure(config: ConfigDict, *, images: int, repeats: int) -> dict[str, float]:
    """Medians of this process, one of several that share `images`."""
    task, mesh = build_meta_learning(config, sources={}), mesh_lib.make_mesh()
    replicated = mesh_lib.replicated(mesh)
    init = jax.jit(functools.partial(initial_state, task), out_shardings=replicated)
    state = init(rng.stream_key(0, "init"))
    params = jax.device_get(state.params)
    gradient = jax.device_put(ravel_pytree(params)[0], replicated)
    shape = (images // jax.process_count(), *config.data.image_shape)
    share = np.random.default_rng(jax.process_index()).integers(0, 256, shape, np.uint8)
    batch = mesh_lib.to_devices(mesh, {"image": share})
    step = make_step(
        task, mesh=mesh, seed=0, ema_decay=0.0, micro_batches=config.meta_learn.micro_batches
    )
    carry = [state, jax.device_put(ALL_FINITE, replicated)]

    def one_step():
        carry[0], logs, carry[1] = step(carry[0], batch, carry[1])
        return logs

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    def allreduce(numbers):
        return jax.lax.pmean(numbers, "data")

    encode = functools.partial(jax.jit(build_fitter(config).encode), params)
    programs = {
        "step": one_step,
        "allreduce": lambda: allreduce(gradient),
        "encode": lambda: encode(share / np.float32(255)),
    }
    seconds = harness.time_interleaved(programs, repeats)
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}


def run_processes(
    count: int, *, largest: int, images: int, arguments: Sequence[str]
) -> dict[str, float]:
    """Runs `measure` in `count` processes; returns the result of process 0.

    Raises:
      RuntimeError: a process failed; with its error output.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // largest
    processes = []
    for index in range(count):
        own = ",".join(map(str, cores[index * share : (index + 1) * share]))
        command = [
            *(["taskset", "-c", own] if own else []),
            *(sys.executable, "-m", "tools.benchmarks.scaling", f"--images={images}", *arguments),
        ]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        if count > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, cwd=_ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
        )
    outputs = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(error)
    return json.loads(outputs[0][0].splitlines()[-1])


def scaling_rows(
    largest: int, *, per_process: int, arguments: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows that the module describes, for 1 and `largest` processes."""
    run = functools.partial(run_processes, largest=largest, arguments=arguments)
    total = per_process * largest
    single = {images: run(1, images=images) for images in (per_process, total)}
    rows = []
    for kind, images in (("weak", per_process), ("strong", total)):
        step = single[images]["step_seconds"]
        rows.append(
            {"kind": kind, "processes": 1, "images": images, "efficiency": 1.0} | single[images]
        )
        several = run(largest, images=total)
        expected = single[per_process]["step_seconds"] + several["allreduce_seconds"]
        efficiency = step / images * total / largest / several["step_seconds"]
        row = {"kind": kind, "processes": largest, "images": total, "efficiency": efficiency}
        rows.append(row | several | {"expected_seconds": expected})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.parser(__doc__, repeats=10)
    parser.add_argument("--processes", type=harness.positive, default=2)
    parser.add_argument("--per-process", type=harness.positive, default=8, help="images")
    # Set for the processes that run_processes starts.
    parser.add_argument("--images", type=harness.positive, help=argparse.SUPPRESS)
    default = "cifar10_spatial:8x8x16,nearest,two_core"
    args, config = harness.parse_with_config(parser, argv, default=default)
    if args.images:
        distributed.initialize()
        print(json.dumps(measure(config, images=args.images, repeats=args.repeats)), flush=True)
        distributed.complete()
        return 0
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        rows = scaling_rows(args.processes, per_process=args.per_process, arguments=given)
    except RuntimeError as error:
        print(f"scaling: a process failed:\n{error}", file=sys.stderr)
        return 1
    for row in rows:
        harness.print_result(row, as_json=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
