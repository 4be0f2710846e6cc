"""What the benchmarks share: turns, the machine's ceiling, memory."""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.runtime import memory, mesh

_MOST_POINTS = 1 << 14  # of the ceiling and a device, whose memory must not hide that of the work

Run = Callable[[], Any]  # does the work once and returns what must be waited for


def measure(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn, so that a noisy machine disturbs all alike; the first turn
    compiles and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ceiling(config: ConfigDict, batch_size: int) -> tuple[Run, int]:
    """(a hidden layer's products for the points of a batch, multiply-adds of one call)."""
    h, w, _ = config.data.image_shape
    width, layers = config.field.width, 8
    weights = jnp.full((layers, width, width), 1 / width, jnp.float32)
    devices = jax.local_device_count()
    rows = min(batch_size * h * w // devices, _MOST_POINTS) * devices
    ones = np.ones((rows, width), np.float32)
    points = mesh.to_devices(mesh.make_mesh(), {"points": ones})["points"]

    @jax.jit
    def products(points, weights):
        for weight in weights:
            points = points @ weight
        return points

    return functools.partial(products, points, weights), layers * points.size * width


def positive(text: str) -> int:
    """For argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def spread(seconds: list[float], median: float) -> float:
    return (max(seconds) - min(seconds)) / median


def peak_bytes() -> int:
    """Of the device where it tells, else of this process."""
    statistics_of_device = jax.local_devices()[0].memory_stats()
    if statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    return memory.peak_bytes()


def knows_reference(config: ConfigDict) -> list[str]:
    """Why python -m tools.benchmarks.reference cannot stand beside this field; [] if it can."""
    field = config.field
    if field.interpolation != "nearest" or field.map == "mlp" or field.modulation != "shift":
        return ["the plain reference knows nearest lookup, linear maps and shift only"]
    return []
