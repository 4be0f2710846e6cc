"""The device mesh, and what lies where on it.

Its axes are `data`, `fsdp` and `cell`. Batches are sharded over all three, everything else is replicated, with two
exceptions, each off at size 1: the parameters and optimiser of a large downstream model are sharded over `fsdp`, and
in meta-learning on whole images the devices of `cell` share the rows of cells of each image.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "cell")
BY_EXAMPLE = P(AXES)  # leading axis over all devices
BY_ROWS = P(("data", "fsdp"), "cell")  # and the second one over the devices that share an example
_SMALLEST_SHARDED = 1 << 14  # numbers; below that, to gather costs more than to keep


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1, cell: int = 1
) -> Mesh:
    """The mesh over these devices, or over all of all processes.

    Devices of a process are neighbours in it, so that the share of a batch that a process holds is one block.

    Args:
      data, fsdp, cell: sizes; one of them may be -1, the rest.
    Raises:
      ValueError: the sizes do not make up the devices, or `cell` would reach over processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(len(devices), data=data, fsdp=fsdp, cell=cell)
    told = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    own = sum(device.process_index == in_order[0].process_index for device in in_order)
    if own % sizes["cell"]:
        raise ValueError(f"{told}: the {own} devices of a process must be a multiple of mesh.cell")
    grid = np.asarray(in_order).reshape([sizes[name] for name in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(count: int, *, data: int, fsdp: int, cell: int) -> dict[str, int]:
    """Sizes of the axes over so many devices, the -1 replaced.

    Raises:
      ValueError: they do not make up the devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "cell": cell}
    told = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    rest = [name for name, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1 or min(size for size in (*sizes.values(), 1) if size != -1) < 1:
        raise ValueError(f"{told}: want numbers from 1, and at most one -1 for the rest")
    if count % given or (not rest and given != count):
        raise ValueError(f"{told} do not make up the {count} devices")
    return sizes | dict.fromkeys(rest, count // given)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, BY_EXAMPLE)


def sharded_axes(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """For every array of `tree` (or its shape) the axis that lies over `fsdp`: the longest one that divides,
    -1 for what is replicated."""
    size = mesh.shape["fsdp"]

    def axis(leaf) -> int:
        fitting = [k for k, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not fitting or np.prod(leaf.shape) < _SMALLEST_SHARDED:
            return -1
        return max(fitting, key=lambda k: leaf.shape[k])

    return jax.tree.map(axis, tree)


def over_fsdp(axis: int) -> P:
    """The partition that `sharded_axes` tells."""
    return P() if axis < 0 else P(*[None] * axis, "fsdp")


def to_devices(mesh: Mesh, batch: dict[str, Any], spec: P = BY_EXAMPLE) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays, sharded by example; what lies on the devices
    already stays."""
    sharding = NamedSharding(mesh, P(spec[0]))
    return {
        name: value
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def to_host(tree: Any) -> Any:
    """Global arrays, however they are sharded -> complete NumPy arrays on every process.

    All processes must call it, unless everything is replicated.
    """

    def complete(leaf):
        if getattr(leaf, "is_fully_replicated", True) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(complete, tree)


def device_name() -> str:
    """Kind and number of the devices of all processes, for example "NVIDIA H100 x8"."""
    return f"{jax.devices()[0].device_kind} x{jax.device_count()}"
