"""Sampling by all devices of all processes, in files of a fixed number of samples.

A block is one file. It is written completely or not at all, and a restarted process samples only
the missing blocks. The content of a block depends on the numbers of its samples, not on the process
that writes it or the number of processes.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from functa.runtime import mesh as mesh_lib
from functa.runtime import storage

# (params, numbers [b], labels [b]) -> latents [b, i, j, d]
SampleFunction = Callable[[Any, jax.Array, jax.Array], jax.Array]


def block_path(directory: epath.PathLike, block: int) -> epath.Path:
    return epath.Path(directory) / f"block-{block:06d}.npy"


def blocks_of_process(count: int, block_size: int, process_index: int, process_count: int) -> range:
    """Numbers of the blocks of `count` samples that a process writes."""
    return range(process_index, -(-count // block_size), process_count)


def write_blocks(
    directory: epath.PathLike,
    *,
    sample: SampleFunction,
    params: Any,
    labels: np.ndarray,
    block_size: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
    process_index: int,
    process_count: int,
) -> float:
    """Writes the missing blocks of this process, for samples 0 to len(labels) - 1.

    Args:
      sample: pure; compiled here.
      params: on the host.
      labels: [n] int32, one for each sample.
      block_size: samples per file, and per device at a time.
      progress: called with the numbers of finished blocks and of all blocks of this process.
      stop: called between blocks; may raise.
    Returns:
      Samples per second of this process without compilation; 0 if no block was missing.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    blocks = blocks_of_process(len(labels), block_size, process_index, process_count)
    missing = [block for block in blocks if not block_path(directory, block).exists()]
    if not missing:
        return 0.0
    mesh = mesh_lib.make_mesh(jax.local_devices())
    sharding = mesh_lib.batched(mesh)
    params = jax.device_put(params, mesh_lib.replicated(mesh))
    rows = jax.ShapeDtypeStruct((block_size * mesh.size,), np.int32, sharding=sharding)
    compiled = jax.jit(sample, out_shardings=sharding).lower(params, rows, rows).compile()
    finished, samples_written, start_time = len(blocks) - len(missing), 0, time.monotonic()
    for first in range(0, len(missing), mesh.size):
        stop()
        group = missing[first : first + mesh.size]
        # Devices without a block of their own repeat the last one.
        device_blocks = np.asarray(group + group[-1:] * (mesh.size - len(group)))
        numbers = device_blocks[:, None] * block_size + np.arange(block_size)
        numbers = numbers.reshape(-1).astype(np.int32)
        group_labels = labels[np.minimum(numbers, len(labels) - 1)]
        latents = np.asarray(compiled(params, *jax.device_put((numbers, group_labels), sharding)))
        for block, block_latents in zip(group, np.split(latents, mesh.size), strict=False):
            block_latents = block_latents[: len(labels) - block * block_size]
            _write_array(block_path(directory, block), block_latents)
            samples_written += len(block_latents)
        finished += len(group)
        progress(finished, len(blocks))
    return samples_written / (time.monotonic() - start_time)


def _write_array(path: epath.Path, array: np.ndarray) -> None:
    """Writes a temporary file and renames it. A remote object appears only when it is complete."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    partial = path if storage.is_remote(path) else path.parent / f"{path.name}.partial"
    with storage.explain_disk_full(path, len(content.getvalue())):
        partial.write_bytes(content.getvalue())
        if partial != path:
            partial.replace(path)


def read_blocks(directory: epath.PathLike, *, count: int, block_size: int) -> np.ndarray:
    """Reads all samples [count, i, j, d] float32 after every process has written its blocks.

    Raises:
      ValueError: a block is missing, or the blocks hold another number of samples.
    """
    arrays = []
    for block in range(-(-count // block_size)):
        path = block_path(directory, block)
        if not path.exists():
            raise ValueError(f"{path} is missing: not all samples were drawn")
        arrays.append(np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))
    latents = np.concatenate(arrays)
    if len(latents) != count:
        raise ValueError(f"{directory} holds {len(latents)} samples, not {count}; remove it")
    return latents
