"""Shared by the benchmarks: interleaved timing, the ceiling of matrix products, configs and output."""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.pipeline.config_files import load_config
from functa.runtime import memory, mesh

_MAX_POINTS = 1 << 14  # rows of the ceiling's products on one device, to limit their memory
_CEILING_LAYERS = 8

Program = Callable[[], Any]  # does the work once; returns arrays to wait for


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the arguments --repeats and --json."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--repeats", type=positive, default=repeats, help="default: %(default)s")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, default: str
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses arguments, --config=NAME[:OPTIONS] and --config.KEY=VALUE overrides."""
    parser.add_argument("--config", default=default, help="default: %(default)s")
    args, rest = parser.parse_known_args(argv)
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    if overrides != rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return args, load_config(args.config, overrides)
    except ValueError as error:
        parser.error(str(error))


def time_interleaved(programs: dict[str, Program], repeats: int) -> dict[str, list[float]]:
    """Seconds of each program in each of `repeats` rounds.

    The programs run in turns, so that other work on the machine slows all of them alike. A first round
    compiles and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> float:
    """(largest - smallest) / median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def ceiling(config: ConfigDict, batch_size: int) -> tuple[Program, int]:
    """Plain matrix products of the shape of a hidden layer, and the multiply-adds of one call."""
    h, w, _ = config.data.image_shape
    width, devices = config.field.width, jax.local_device_count()
    weights = jnp.full((_CEILING_LAYERS, width, width), 1 / width, jnp.float32)
    rows = min(batch_size * h * w // devices, _MAX_POINTS) * devices
    batch = mesh.to_devices(mesh.make_mesh(), {"points": np.ones((rows, width), np.float32)})

    @jax.jit
    def products(points: jax.Array, weights: jax.Array) -> jax.Array:
        for weight in weights:
            points = points @ weight
        return points

    program = functools.partial(products, batch["points"], weights)
    return program, _CEILING_LAYERS * rows * width * width


def peak_bytes() -> int:
    """Peak memory of the device if it reports it, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else memory.peak_bytes()


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """Prints {name: value} as one JSON object or as lines."""
    if as_json:
        print(json.dumps(result), flush=True)
        return
    for name, value in result.items():
        print(f"{name:<34}{value:,.4g}" if isinstance(value, float) else f"{name:<34}{value}")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
