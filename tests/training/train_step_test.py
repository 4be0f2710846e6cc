"""The training step: equal results on all meshes, micro-batches, moving average and collectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import cifar10_spatial, common, digits, imagenet
from functa.runtime import mesh as mesh_lib
from functa.training import train_step
from functa.training.tasks import builders
from functa.training.tasks.builders import build_meta_learning
from tests.support.collectives import collectives
from tests.training import loop_test
from tests.training.tasks.classification_test import batch_of, make_task


def whole_image_config(**changes):
    """A config that trains on whole images, whose 4 rows of cells devices can share."""
    config = digits.get_config("tiny")
    config.meta_learn.cells_per_image = 0
    config.field.latent_shape = (4, 2, 4)
    config.update_from_flattened_dict(changes)
    return config


def random_images(count):
    return {"image": np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)}


def with_noise(task):
    """The task with noise on its initial parameters. Some are zero, and so are gradients then."""

    def init(key):
        params = task.init(key)
        return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), params)

    return task._replace(init=init)


def with_noisy_map(task):
    """The task with a noisy map of latents to modulations, which initially ignores neighbors."""

    def init(key):
        params = task.init(key)
        weight = params["field"]["map"]["weight"]
        noise = 0.3 * jax.random.normal(key, weight.shape)
        return params | {"field": params["field"] | {"map": {"weight": weight + noise}}}

    return task._replace(init=init)


def gradients(task, batch, *, micro_batches=1, **sizes):
    """((loss, logs), gradient) on the host, and the gradient on the devices.

    Args:
      sizes: of the mesh; one device if there are none.
    """
    mesh = mesh_lib.make_mesh(jax.devices()[: None if sizes else 1], **sizes)
    shapes = train_step.state_shapes(task, mesh).params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    params = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
    compute = jax.jit(train_step.make_gradients(task, mesh=mesh, micro_batches=micro_batches))
    arrays = mesh_lib.to_devices(mesh, batch, task.batch_spec)
    values, gradient = compute(params, arrays, jax.random.key(1))
    return mesh_lib.to_host((values, gradient)), gradient


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=10 * tolerance, atol=tolerance * max(abs(b).max(), 0.1)
        ),
        actual,
        expected,
    )


@pytest.mark.parametrize(
    ("cell", "changes"),
    [
        (4, {"field.map": "conv3x3", "meta_learn.flips": True}),
        (2, {"field.map": "conv3x3", "field.upsampling": 2, "inner_loop.lr_shape": "full"}),
        pytest.param(
            *(4, {"field.map": "mlp", "meta_learn.loss": "mse", "inner_loop.lr_shape": "cell"}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(2, {"field.map": "linear", "field.coordinates": "periodic", "inner_loop.chunks": 2}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_shared_images_equal_single_device(cell, changes):
    config = whole_image_config(**changes)
    single, shared = (build_meta_learning(config, sources={}) for config.mesh.cell in (1, cell))
    if config.field.map == "conv3x3":
        single, shared = with_noisy_map(single), with_noisy_map(shared)
    expected, _ = gradients(single, random_images(4))
    actual, _ = gradients(shared, random_images(4), cell=cell)
    assert_close(actual, expected)


@pytest.mark.parametrize("cell", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_micro_batches_equal_the_whole_batch(cell):
    """Windows of one image stay in one micro-batch, also if devices share images."""
    config = whole_image_config(**{"field.map": "conv3x3", "mesh.cell": cell})
    if cell == 1:
        config.meta_learn.update(cells_per_image=8, window=2)
    images = random_images(8)
    task = with_noisy_map(build_meta_learning(config, sources={}))
    sizes = {"cell": cell} if cell > 1 else {}
    expected, _ = gradients(task, images, **sizes)
    actual, _ = gradients(task, images, micro_batches=2, cell=cell)
    assert_close(actual, expected)
    halves = [{"image": images["image"][start::2]} for start in (0, 1)]
    losses = [gradients(task, half, cell=cell)[0][0][0] for half in halves]
    assert abs(losses[0] - losses[1]) > 1e-4  # one micro-batch alone would be wrong


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mesh.cell": 3}, "mesh.cell=3"),
        ({"mesh.cell": 2, "field.coordinates": "global"}, "coordinates"),
        ({"mesh.cell": 2, "meta_learn.cells_per_image": 2}, "meta_learn.cells_per_image"),
        ({"mesh.cell": -1}, "mesh.cell"),
        ({"mesh.cell": 0}, "mesh.cell"),
        ({"mesh.cell": 4, "inner_loop.chunks": 4}, "chunks=4"),
    ],
)
def test_images_that_devices_cannot_share_are_rejected(changes, key):
    (problem,) = builders.validate_meta_learning(whole_image_config(**changes))
    assert key in problem


CONVNEXT = common.convnext(widths=(128, 128), depths=(1, 1), drop_path=0.5, dropout=0.3)
TRANSFORMER = common.transformer(
    width=128, depth=2, heads=2, mlp_width=128, drop_path=0.5, remat=True, dtype="bfloat16"
)


@pytest.mark.parametrize(
    ("changes", "kernel_path", "shard_shape", "tolerance"),
    [
        (
            {"classify.mixup": 0.5, "classify.augment.noise": 0.5, "classify.model": CONVNEXT},
            ("block_0_0", "feed_forward", "hidden"),
            (128, 256),
            1e-5,
        ),
        pytest.param(
            {"classify.model": TRANSFORMER, "classify.augment.crop": 1},
            ("transformer", "block_1", "attention", "query_key_value"),
            (128, 192),
            0.02,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["convnext", "transformer"],
)
def test_fsdp_equals_single_device(changes, kernel_path, shard_shape, tolerance):
    task = with_noise(make_task(**changes))
    expected, _ = gradients(task, batch_of())
    actual, gradient = gradients(task, batch_of(), fsdp=2)
    assert_close(actual, expected, tolerance)
    for name in (*kernel_path, "kernel"):
        gradient = gradient[name]
    assert gradient.dtype == np.float32
    assert np.abs(gradient).max() > 1e-3
    assert {shard.data.shape for shard in gradient.addressable_shards} == {shard_shape}


@pytest.mark.slow
def test_state_over_fsdp_trains_like_single_device():
    task = make_task(**{"classify.model": CONVNEXT})
    states = []
    for mesh in (mesh_lib.make_mesh(jax.devices()[:1]), mesh_lib.make_mesh(fsdp=4)):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, train_step.state_shapes(task, mesh))
        init = functools.partial(train_step.initial_state, task)
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        step = train_step.make_step(task, mesh=mesh, seed=0, ema_decay=0.5, micro_batches=1)
        first_nonfinite = train_step.ALL_FINITE
        for number in range(3):
            batch = mesh_lib.to_devices(mesh, batch_of(seed=number))
            state, _, first_nonfinite = step(state, batch, first_nonfinite)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
        states.append(mesh_lib.to_host(state))
    # Adam divides by the size of gradients and so amplifies rounding errors of small ones.
    assert_close(states[1].ema, states[0].ema, tolerance=1e-3)
    leaves = jax.tree.leaves(state)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    assert held < 1.5 * sum(leaf.nbytes for leaf in leaves)  # 4 times if replicated


def test_moving_average_and_first_nonfinite_step():
    mesh, task = mesh_lib.make_mesh(), loop_test.TASK
    step = train_step.make_step(task, mesh=mesh, seed=0, ema_decay=0.5, micro_batches=1)
    params = {"w": jnp.ones(3)}
    optimizer = task.optimizer.transformation.init(params)
    state = train_step.TrainState(jnp.int32(0), params, optimizer, {"w": jnp.zeros(3)})
    average, first_nonfinite = np.zeros(3), train_step.ALL_FINITE
    for index, batch in enumerate(loop_test.train_batches(0, 14, nan_step=12)):
        batch = mesh_lib.to_devices(mesh, batch)
        state, logs, first_nonfinite = step(state, batch, first_nonfinite)
        if index < 12:
            decay = min(0.5, (1 + index) / (10 + index))
            average = decay * average + (1 - decay) * np.asarray(state.params["w"])
            np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)
            assert int(first_nonfinite[0]) == -1
            assert all(np.isfinite(value) for value in logs.values())
    assert first_nonfinite.tolist() == [12, train_step.CHECKED_VALUES.index("loss")]


def step_collectives(config, mesh):
    """Collectives of the compiled step of meta_learn, and its state."""
    task = build_meta_learning(config, sources={})
    settings = config.meta_learn
    step = train_step.make_step(
        task, mesh=mesh, seed=0, ema_decay=0.5, micro_batches=settings.micro_batches
    )
    state = train_step.state_shapes(task, mesh)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(task.batch_spec[0]))
    shape = (settings.batch_size, *config.data.image_shape)
    batch = {"image": jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding)}
    return collectives(step.lower(state, batch, train_step.ALL_FINITE).compile()), state


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "config",
    [
        digits.get_config("tiny"),
        cifar10_spatial.get_config("8x8x16,bilinear,tiny"),
        imagenet.get_config("tiny"),  # windows
    ],
    ids=lambda config: config.name,
)
def test_step_sends_only_the_gradient_once_and_scalars(config):
    config.meta_learn.batch_size = 32  # a value per image would exceed the tolerance below
    ((kind, (numbers,)),), state = step_collectives(config, mesh_lib.make_mesh())
    assert kind == "all-reduce"
    assert size(state.params) < numbers < size(state.params) + 20


@pytest.mark.parametrize("sizes", [{"cell": 4}, {"fsdp": 2, "cell": 2}])
def test_step_with_shared_images_sends_the_gradient_once(sizes):
    config = whole_image_config(**{"field.map": "conv3x3"})
    config.mesh.update(sizes)
    sent, state = step_collectives(config, mesh_lib.make_mesh(**config.mesh))
    reduced = [sum(numbers) for kind, numbers in sent if kind == "all-reduce"]
    images = config.meta_learn.batch_size
    assert size(state.params) < max(reduced) < size(state.params) + 20
    assert sum(reduced) < max(reduced) + 4 * images  # errors of images whose cells are distributed
    others = [one for one in sent if one.kind != "all-reduce"]
    # One row of latents for the neighbor, and their derivatives.
    _, j, d = config.field.latent_shape
    assert others
    assert all(one.kind == "collective-permute" for one in others)
    assert all(sum(one.sizes) <= images * j * d for one in others)


def test_evaluation_sends_nothing():
    config, mesh = cifar10_spatial.get_config("8x8x16,bilinear,tiny"), mesh_lib.make_mesh()
    task = build_meta_learning(config, sources={})
    params = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((16, *config.data.image_shape), np.uint8)
    evaluate = jax.jit(
        task.metrics.evaluate,
        in_shardings=(mesh_lib.replicated(mesh), mesh_lib.batched(mesh)),
        out_shardings=mesh_lib.batched(mesh),
    )
    assert collectives(evaluate.lower(params, {"image": images}).compile()) == []
