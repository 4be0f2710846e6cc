"""Sizes of the mesh, the order of its devices, and shardings of parameters."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from functa.runtime import mesh as mesh_lib


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (4, 1, 1)),
        ({"fsdp": 2}, (2, 2, 1)),
        ({"data": 1, "fsdp": 2, "cell": -1}, (1, 2, 2)),
        ({"data": 4}, (4, 1, 1)),
    ],
)
def test_minus_one_means_all_remaining_devices(sizes, shape):
    mesh = mesh_lib.make_mesh(**sizes)
    assert tuple(mesh.shape[name] for name in mesh_lib.AXES) == shape
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        ({"cell": 3}, "mesh.cell=3"),
        ({"data": 2}, "mesh.data=2"),
        ({"data": 8}, "mesh.data=8"),
        ({"fsdp": -1}, "mesh.fsdp=-1"),
        ({"fsdp": 0}, "mesh.fsdp=0"),
    ],
)
def test_impossible_sizes_are_rejected(sizes, key):
    with pytest.raises(ValueError, match=key):
        mesh_lib.make_mesh(**sizes)


class FakeDevice:
    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


def test_devices_of_a_process_are_adjacent_and_cell_stays_within_a_process(monkeypatch):
    monkeypatch.setattr(mesh_lib, "Mesh", lambda grid, *_, **__: grid)
    devices = [FakeDevice(process, 2 * k + process) for k in range(4) for process in (0, 1)]
    grid = mesh_lib.make_mesh(devices, cell=2)
    assert [device.process_index for device in grid.flat] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="mesh.cell=8"):
        mesh_lib.make_mesh(devices, cell=8)


def test_small_and_indivisible_arrays_are_replicated():
    mesh = mesh_lib.make_mesh(fsdp=4)
    shapes = {
        "long": jax.ShapeDtypeStruct((8, 8192), np.float32),
        "odd": jax.ShapeDtypeStruct((6, 8191), np.float32),
        "small": jax.ShapeDtypeStruct((64,), np.float32),
    }
    axes = mesh_lib.sharded_axes(mesh, shapes)
    assert axes == {"long": 1, "odd": -1, "small": -1}
    assert mesh_lib.over_fsdp(1) == P(None, "fsdp")
    assert NamedSharding(mesh, mesh_lib.over_fsdp(-1)).is_fully_replicated


def test_to_devices_and_to_host_are_inverse():
    mesh = mesh_lib.make_mesh(fsdp=2)
    batch = {"x": np.arange(24).reshape(8, 3)}
    arrays = mesh_lib.to_devices(mesh, batch)
    assert {shard.data.shape for shard in arrays["x"].addressable_shards} == {(2, 3)}
    assert mesh_lib.to_devices(mesh, arrays)["x"] is arrays["x"]
    np.testing.assert_array_equal(mesh_lib.to_host(arrays)["x"], batch["x"])
