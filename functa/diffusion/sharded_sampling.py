"""Drawing many samples: in blocks of fixed size, by all devices of all processes, each block once.

A block is a file, written whole or not at all; who comes again draws what is missing. Its content depends on the
numbers of its samples, and neither on who draws it nor on how many others do.
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
Sampler = Callable[[Any, jax.Array, jax.Array], jax.Array]


def block_file(directory: epath.PathLike, number: int) -> epath.Path:
    return epath.Path(directory) / f"block-{number:06d}.npy"


def share_of(count: int, block: int, process_index: int, process_count: int) -> range:
    """The blocks of `count` samples that a process draws."""
    return range(process_index, -(-count // block), process_count)


def draw(
    directory: epath.PathLike,
    *,
    sampler: Sampler,
    params: Any,
    labels: np.ndarray,
    block: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
    process_index: int,
    process_count: int,
) -> float:
    """Writes this process's share of samples 0 ... len(labels) - 1.

    Args:
      params: on the host.
      labels: [n] int32, of each sample.
      block: samples that a device draws at a time.
      progress: called with blocks done and blocks of this process in all.
      stop: called between blocks; may raise.
    Returns:
      Samples a second of this process, compilation left out; 0 where nothing was missing.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    blocks = share_of(len(labels), block, process_index, process_count)
    missing = [number for number in blocks if not block_file(directory, number).exists()]
    done, total = len(blocks) - len(missing), len(blocks)
    if not missing:
        return 0.0
    mesh = mesh_lib.make_mesh(jax.local_devices())
    place = mesh_lib.batched(mesh)
    params = jax.device_put(params, mesh_lib.replicated(mesh))
    shape = jax.ShapeDtypeStruct((block * mesh.size,), np.int32, sharding=place)
    compiled = jax.jit(sampler, out_shardings=place).lower(params, shape, shape).compile()
    drawn_here, begin = 0, time.monotonic()
    for first in range(0, len(missing), mesh.size):
        stop()
        some = missing[first : first + mesh.size]
        # Devices without a block of their own draw the last one again.
        turns = np.asarray(some + some[-1:] * (mesh.size - len(some)))
        numbers = (turns[:, None] * block + np.arange(block)).reshape(-1).astype(np.int32)
        asked = labels[np.minimum(numbers, len(labels) - 1)]
        latents = np.asarray(compiled(params, *jax.device_put((numbers, asked), place)))
        for number, drawn in zip(
            some, latents.reshape(mesh.size, block, *latents.shape[1:]), strict=False
        ):
            own = drawn[: len(labels) - number * block]
            _write(block_file(directory, number), own)
            drawn_here += len(own)
        done += len(some)
        progress(done, total)
    return drawn_here / (time.monotonic() - begin)


def _write(path: epath.Path, latents: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, latents, allow_pickle=False)
    beside = path if storage.is_remote(path) else path.parent / f"{path.name}.partial"
    with storage.explain_disk_full(path, len(content.getvalue())):
        beside.write_bytes(content.getvalue())
        if beside != path:
            beside.replace(path)


def collect(directory: epath.PathLike, *, count: int, block: int) -> np.ndarray:
    """All samples [count, i, j, d] float32, once every process has drawn its share.

    Raises:
      ValueError: one is missing, or was drawn with another block size.
    """
    files = [block_file(directory, number) for number in range(-(-count // block))]
    parts = []
    for file in files:
        if not file.exists():
            raise ValueError(f"{file} is missing: not all samples are drawn")
        parts.append(np.load(io.BytesIO(file.read_bytes()), allow_pickle=False))
    latents = np.concatenate(parts)
    if len(latents) != count:
        raise ValueError(f"{directory} holds {len(latents)} samples, not {count}; remove it")
    return latents


def make_decoder(
    field: Any, params: Any, *, batch_size: int, scale: int = 1
) -> Callable[[np.ndarray], np.ndarray]:
    """latents [n, i, j, d] -> images [n, scale h, scale w, c] float32 in [0, 1], so many at a time.

    Args:
      field, params: a Field and the parameters of the task meta_learn, on the host.
      scale: of the resolution, over that of training.
    """
    h, w, _ = field.image_shape
    shape = (scale * h, scale * w)
    decode = jax.jit(
        lambda latents: jax.numpy.clip(field(params["field"], latents, shape=shape), 0, 1)
    )

    def images(latents: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(latents), batch_size):
            some = latents[start : start + batch_size]
            # The last batch is filled up: one program for all.
            full = np.concatenate([some, np.repeat(some[-1:], batch_size - len(some), axis=0)])
            parts.append(np.asarray(decode(full))[: len(some)])
        return np.concatenate(parts)

    return images
