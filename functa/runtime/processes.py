"""Communication between the processes of a run: barriers, texts and problems."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
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


def share_work(
    compute: Callable[[int], Sequence[Any]], count: int, *, name: str
) -> Iterator[Sequence[Any]]:
    """Yields compute(0) ... compute(count - 1), each computed by one process; all must call it.

    Args:
      compute: number -> arrays or numbers.
      name: of the barrier before the results are exchanged.
    """
    if jax.process_count() == 1:
        yield from map(compute, range(count))
        return
    own = {k: compute(k) for k in range(jax.process_index(), count, jax.process_count())}
    barrier(name)  # it waits longer than a collective does
    for number in range(count):
        owner = number % jax.process_count()
        content = io.BytesIO()
        np.savez(content, *own.pop(number, ()))
        with np.load(io.BytesIO(_broadcast(content.getvalue(), owner))) as arrays:
            yield [arrays[f"arr_{position}"] for position in range(len(arrays.files))]


def _broadcast(content: bytes, owner: int) -> bytes:
    """The bytes of process `owner`."""
    is_owner = jax.process_index() == owner
    sizes = multihost_utils.process_allgather(np.int64(len(content)))
    buffer = np.zeros(int(sizes[owner]), np.uint8)
    if is_owner:
        buffer[:] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer, is_source=is_owner).tobytes()


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
