"""The device mesh and shardings.

The mesh has the axes data, fsdp and cell. Batches are sharded over all three axes, everything else is
replicated, with two exceptions: the parameters and optimizer state of a large downstream model are
sharded over fsdp, and in meta-learning on whole images the devices along cell share each image, by
rows of cells.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "cell")
BY_EXAMPLE = P(AXES)  # the leading axis over all devices
BY_ROWS = P(("data", "fsdp"), "cell")  # and the second axis over the devices that share an example
_MIN_SHARDED_SIZE = 1 << 14  # for smaller arrays, gathering costs more than the memory saved


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1, cell: int = 1
) -> Mesh:
    """Builds the mesh of some devices, by default of all devices of all processes.

    Devices of a process are adjacent, so that its share of a batch is contiguous.

    Args:
      devices: devices of the mesh.
      data, fsdp, cell: sizes of the axes. One of them may be -1, which means all remaining devices.
    Raises:
      ValueError: the product of the sizes is not the number of devices, or devices along `cell`
        belong to different processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(len(devices), data=data, fsdp=fsdp, cell=cell)
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    per_process = sum(device.process_index == ordered[0].process_index for device in ordered)
    if per_process % sizes["cell"]:
        raise ValueError(
            f"mesh.cell={sizes['cell']} must divide the {per_process} devices of a process"
        )
    grid = np.asarray(ordered).reshape([sizes[name] for name in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(count: int, *, data: int, fsdp: int, cell: int) -> dict[str, int]:
    """Sizes of the axes for a number of devices, with -1 replaced.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "cell": cell}
    settings = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free_axes = [name for name, size in sizes.items() if size == -1]
    fixed_sizes = [size for size in sizes.values() if size != -1]
    product = math.prod(fixed_sizes)
    if len(free_axes) > 1 or min(fixed_sizes) < 1:
        raise ValueError(f"{settings}: sizes must be at least 1, and at most one may be -1")
    if count % product or (not free_axes and product != count):
        raise ValueError(f"{settings}: the product of the sizes must be {count}, the devices")
    return sizes | dict.fromkeys(free_axes, count // product)


def batch_repeats(batch_size: int, *, devices: int, micro_batches: int, sharing: int = 1) -> int:
    """How often every example of a training batch is repeated, so that all devices have equal parts.

    A step samples a repeated example anew: with its own crop, augmentation and noise.

    Args:
      micro_batches: parts of the batch of a device.
      sharing: devices that share every example.
    """
    parts = devices // sharing * micro_batches
    return math.lcm(batch_size, parts) // batch_size


def padded_batch(batch_size: int, devices: int) -> int:
    """The smallest batch of at least `batch_size` examples that the devices divide."""
    return -(-batch_size // devices) * devices


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """Sharding of the leading axis over all devices."""
    return NamedSharding(mesh, BY_EXAMPLE)


def sharded_axes(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Axis of each array that is sharded over fsdp; -1 if the array is replicated.

    Large arrays are sharded along their longest axis that is divisible by the size of fsdp.
    """
    size = mesh.shape["fsdp"]

    def axis(leaf) -> int:
        divisible = [k for k, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not divisible or np.prod(leaf.shape) < _MIN_SHARDED_SIZE:
            return -1
        return max(divisible, key=lambda k: leaf.shape[k])

    return jax.tree.map(axis, tree)


def over_fsdp(axis: int) -> P:
    """Partition of an array whose axis `axis` (from `sharded_axes`) is sharded over fsdp."""
    return P() if axis < 0 else P(*[None] * axis, "fsdp")


def to_devices(mesh: Mesh, batch: dict[str, Any], spec: P = BY_EXAMPLE) -> dict[str, jax.Array]:
    """Makes global arrays, sharded by example, from this process's share of a batch.

    Arrays that are on devices already are returned as they are.
    """
    sharding = NamedSharding(mesh, P(spec[0]))
    return {
        name: value
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def to_host(tree: Any) -> Any:
    """Copies global arrays of any sharding to NumPy arrays on every process.

    All processes must call it, unless all arrays are replicated.
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
