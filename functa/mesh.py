"""The device mesh: batches are sharded over its `data` axis, everything else is replicated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over these devices, or over all of all processes."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`."""
    return NamedSharding(mesh, P("data"))


def to_devices(mesh: Mesh, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """This process's share of a batch -> global arrays, sharded by example; what lies on the devices
    already stays."""
    sharding = batched(mesh)
    return {
        name: value
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def to_host(tree: Any) -> Any:
    """Global arrays, sharded by example or replicated -> complete NumPy arrays on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
