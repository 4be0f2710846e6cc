"""The mesh: its sizes, and that what is computed does not depend on them."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from functa.configs import common, digits
from functa.plan import compiled
from functa.plan.programs import Programs
from functa.runtime import mesh as mesh_lib
from functa.training import train_step
from functa.training.tasks import meta_learning
from functa.training.tasks.builders import build_meta_learning
from tests.training.tasks.classification_test import batch_of, make_task


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (4, 1, 1)),
        ({"fsdp": 2}, (2, 2, 1)),
        ({"data": 1, "fsdp": 2, "cell": -1}, (1, 2, 2)),
        ({"data": 4}, (4, 1, 1)),
    ],
)
def test_minus_one_is_the_rest(sizes, shape):
    mesh = mesh_lib.make_mesh(**sizes)
    assert tuple(mesh.shape[name] for name in mesh_lib.AXES) == shape
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"cell": 3}, "mesh.cell=3 do not make up the 4 devices"),
        ({"data": 2}, "mesh.data=2.* do not make up the 4 devices"),
        ({"fsdp": -1}, "at most one -1"),
        ({"fsdp": 0}, "want numbers from 1"),
    ],
)
def test_impossible_sizes_are_told(sizes, told):
    with pytest.raises(ValueError, match=told):
        mesh_lib.make_mesh(**sizes)


class Far:
    """A device of a process that is not here."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


def test_devices_of_a_process_are_neighbours_and_share_images_only_among_themselves(monkeypatch):
    monkeypatch.setattr(mesh_lib, "Mesh", lambda grid, *_, **__: grid)
    devices = [Far(process, 2 * k + process) for k in range(4) for process in (0, 1)]
    grid = mesh_lib.make_mesh(devices, cell=2)
    assert [device.process_index for device in grid.flat] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="the 4 devices of a process must be a multiple"):
        mesh_lib.make_mesh(devices, cell=8)


def whole_images(**changes):
    config = digits.get_config("tiny")
    config.meta_learn.cells_per_image = 0
    config.field.latent_shape = (4, 2, 4)
    config.update_from_flattened_dict(changes)
    return config


def gradients(task, batch, *, micro_batches=1, **sizes):
    devices = jax.devices()[: 1 if not sizes else None]
    mesh = mesh_lib.make_mesh(devices, **sizes)
    state = train_step.state_shapes(task, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    params = jax.jit(task.init, out_shardings=places)(jax.random.key(0))
    of = jax.jit(train_step.make_gradients(task, mesh=mesh, micro_batches=micro_batches))
    (loss, logs), gradient = of(
        params, mesh_lib.to_devices(mesh, batch, task.batch_spec), jax.random.key(1)
    )
    return mesh_lib.to_host((loss, logs, gradient)), gradient


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=10 * tolerance, atol=tolerance * max(abs(b).max(), 0.1)
        ),
        ours,
        theirs,
    )


@pytest.mark.parametrize(
    ("cell", "changes"),
    [
        (4, {"field.map": "conv3x3", "meta_learn.flips": True}),
        (2, {"field.map": "conv3x3", "field.upsampling": 2, "inner_loop.lr_shape": "full"}),
        (4, {"field.map": "mlp", "meta_learn.loss": "mse", "inner_loop.lr_shape": "cell"}),
        (2, {"field.map": "linear", "field.coordinates": "periodic", "inner_loop.chunks": 2}),
    ],
    ids=str,
)
def test_devices_that_share_images_give_what_one_gives(cell, changes):
    config = whole_images(**changes)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)}
    alone, shared = (build_meta_learning(config, sources={}) for config.mesh.cell in (1, cell))
    if config.field.map == "conv3x3":
        alone, shared = map(with_random_map, (alone, shared))
    expected, _ = gradients(alone, batch)
    found, _ = gradients(shared, batch, cell=cell)
    assert_close(found, expected)


@pytest.mark.parametrize("cell", [1, 2])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(cell):
    """Windows of an image stay together, and devices that share images take their parts together."""
    config = whole_images(**{"field.map": "conv3x3", "mesh.cell": cell})
    if cell == 1:
        config.meta_learn.update(cells_per_image=8, window=2)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)}
    task = with_random_map(build_meta_learning(config, sources={}))
    expected, _ = gradients(task, batch, **({"cell": cell} if cell > 1 else {}))  # on one device
    found, _ = gradients(task, batch, micro_batches=2, cell=cell)
    assert_close(found, expected)
    parts = [{"image": batch["image"][start::2]} for start in (0, 1)]
    others = [gradients(task, part, cell=cell)[0][0] for part in parts]
    assert abs(others[0] - others[1]) > 1e-4  # a part alone would not do


def with_random_map(task):
    """The map begins as that of the cell alone; here neighbours are heard."""

    def init(key):
        params = task.init(key)
        weight = params["field"]["map"]["weight"]
        noise = 0.3 * jax.random.normal(key, weight.shape)
        return params | {"field": params["field"] | {"map": {"weight": weight + noise}}}

    return task._replace(init=init)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mesh.cell": 3}, "mesh.cell=3 must divide the 4 rows"),
        (
            {"mesh.cell": 2, "field.coordinates": "global"},
            "wants interpolation=nearest and coordinates=local",
        ),
        ({"mesh.cell": 2, "meta_learn.cells_per_image": 2}, "mesh.cell=2 shares out whole images"),
        ({"mesh.cell": -1}, "must be given"),
        ({"mesh.cell": 0}, "mesh.cell=0: how many"),
        ({"mesh.cell": 4, "inner_loop.chunks": 4}, "chunks=4 must divide the 1 rows"),
    ],
)
def test_images_that_cannot_be_shared_are_told(changes, told):
    (problem,) = (line for line in meta_learning.validate(whole_images(**changes)) if told in line)
    assert problem


CONVNEXT = common.convnext(widths=(128, 128), depths=(1, 1), drop_path=0.5, dropout=0.3)


def stirred(task):
    """The last layer begins at zero, and with it every gradient before it; here it does not."""
    task_init = task.init

    def init(key):
        noise = lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape)  # noqa: E731
        return jax.tree.map(noise, task_init(key))

    return task._replace(init=init)


def test_a_model_over_fsdp_is_the_model_on_one_device():
    task = make_task(
        **{"classify.mixup": 0.5, "classify.augment.noise": 0.5, "classify.model": CONVNEXT}
    )
    task = stirred(task)
    expected, _ = gradients(task, batch_of())
    found, gradient = gradients(task, batch_of(), fsdp=2)
    assert_close(found, expected)
    kernel = gradient["block_0_0"]["feed_forward"]["hidden"]["kernel"]
    assert kernel.shape == (128, 512)
    assert np.abs(kernel).max() > 1e-3
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(128, 256)}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("bfloat16", 0.02), pytest.param("float32", 1e-5, marks=pytest.mark.slow)],
)
def test_a_transformer_computed_again_over_fsdp_is_the_one_on_one_device(dtype, tolerance):
    vit = common.transformer(
        width=128, depth=2, heads=2, mlp_width=128, drop_path=0.5, remat=True, dtype=dtype
    )
    augment = {"classify.augment.flip": True, "classify.augment.crop": 1}
    task = stirred(make_task(**{"classify.model": vit, **augment}))
    expected, _ = gradients(task, batch_of())
    found, gradient = gradients(task, batch_of(), fsdp=2)
    assert_close(found, expected, tolerance=tolerance)
    kernel = gradient["transformer"]["block_1"]["attention"]["query_key_value"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.abs(kernel).max() > 1e-3
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(128, 192)}


def test_a_state_over_fsdp_trains_like_a_state_on_one_device():
    task = make_task(**{"classify.model": CONVNEXT})
    states = []
    for mesh in (mesh_lib.make_mesh(jax.devices()[:1]), mesh_lib.make_mesh(fsdp=4)):
        places = jax.tree.map(lambda leaf: leaf.sharding, train_step.state_shapes(task, mesh))
        init = functools.partial(train_step.initial_state, task)
        state = jax.jit(init, out_shardings=places)(jax.random.key(0))
        step, bad = (
            train_step.make_step(task, mesh=mesh, seed=0, ema_decay=0.5, micro_batches=1),
            train_step.ALL_FINITE,
        )
        for number in range(3):
            batch = mesh_lib.to_devices(mesh, batch_of(seed=number))
            state, _, bad = step(state, batch, bad)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
        states.append(mesh_lib.to_host(state))
    # Adam divides by the size of a gradient, and so magnifies what rounding makes of small ones.
    assert_close(states[1].ema, states[0].ema, tolerance=1e-3)
    held = [
        shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
    ]
    assert sum(held) < 1.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # 4 if replicated


def test_what_is_small_or_does_not_divide_is_replicated():
    mesh = mesh_lib.make_mesh(fsdp=4)
    shapes = {
        "long": jax.ShapeDtypeStruct((6, 8192), np.float32),
        "odd": jax.ShapeDtypeStruct((6, 8191), np.float32),
        "small": jax.ShapeDtypeStruct((64,), np.float32),
    }
    axes = mesh_lib.sharded_axes(mesh, shapes)
    assert axes == {"long": 1, "odd": -1, "small": -1}
    assert mesh_lib.over_fsdp(1) == P(None, "fsdp")
    assert NamedSharding(mesh, mesh_lib.over_fsdp(-1)).is_fully_replicated


@pytest.mark.parametrize("sizes", [{"cell": 4}, {"fsdp": 2, "cell": 2}])
def test_a_step_on_any_mesh_reduces_the_gradient_once(sizes):
    config = whole_images(**{"field.map": "conv3x3"})
    config.mesh.update(sizes)
    step = Programs(config).train_step("meta_learn", mesh_lib.make_mesh(**config.mesh))
    found = compiled.collectives(step.function.lower(*step.arguments).compile())
    reduced = [sum(one.sizes) for one in found if one.kind == "all-reduce"]
    task = build_meta_learning(config, sources={})
    params = jax.eval_shape(task.init, jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    images = config.meta_learn.batch_size
    assert numbers < max(reduced) < numbers + 20
    assert sum(reduced) < max(reduced) + 4 * images  # errors of images, where their cells are apart
    others = [one for one in found if one.kind != "all-reduce"]
    # The latents of one row for the neighbour, and their derivatives.
    (_, j, d) = config.field.latent_shape
    assert all(one.kind == "collective-permute" for one in others)
    assert all(sum(one.sizes) <= images * j * d for one in others)
    assert bool(others) == ("cell" in sizes)
