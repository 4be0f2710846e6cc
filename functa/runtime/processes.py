"""Communication between the processes of a run: barriers, texts and problems."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

# Processes may arrive at a barrier at very different times, for example after reading data.
_BARRIER_SECONDS = 1800


def is_distributed() -> bool:
    """Whether this run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_name() -> str:
    """For messages: "process 0 of 2"."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def barrier(name: str) -> None:
    """Waits until all processes have called it with the same name.

    Raises:
      RuntimeError: a process has died or did not arrive within half an hour.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * _BARRIER_SECONDS)


def gather_texts(text: str, name: str) -> list[str]:
    """Texts of all processes, by process index. All processes must call it with the same name."""
    if jax.process_count() == 1:
        return [text]
    barrier(name)  # it waits longer than a collective does
    encoded = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(encoded)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(encoded)] = encoded
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def gather_problems(problems: list[str], shared: dict[str, Any] | None = None) -> list[str]:
    """Problems of all processes, the same list on each, so that all or none of them stop.

    Args:
      problems: those that this process found.
      shared: JSON values that must be equal in all processes, such as versions and settings.
    Returns:
      Problems of process 0, additional problems of other processes, and differences in `shared`.
    """
    texts = gather_texts(json.dumps([problems, shared or {}]), "problems")
    (result, expected), *others = map(json.loads, texts)
    for index, (other_problems, values) in enumerate(others, start=1):
        result += [f"process {index}: {line}" for line in other_problems if line not in result]
        result += [
            f"{name} is {values.get(name, '(absent)')} in process {index}, but "
            f"{expected.get(name, '(absent)')} in process 0"
            for name in sorted(expected.keys() | values.keys())
            if expected.get(name) != values.get(name)
        ]
    return result
