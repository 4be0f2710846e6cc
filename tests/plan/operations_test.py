"""Multiply-adds and bytes sent, against counts by hand, published numbers and XLA's count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from functa.configs import cifar10_spatial, digits
from functa.fields.fitter import build_field
from functa.plan import operations
from functa.plan.programs import Programs, device_bytes
from functa.training import optimizers

MATRIX = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def multiply_adds(function, *arguments):
    return operations.count(function, *arguments).multiply_adds


def mesh_of(**sizes):
    sizes = {"data": 1, "fsdp": 1, "cell": 1} | sizes
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_the_forward_pass_has_the_published_count():
    """0.27106 GMAC at depth 6, width 256, 8x8x16 for 32x32 pixels, and 286,467 parameters."""
    config = cifar10_spatial.get_config("8x8x16,nearest")
    config.field.update(map="linear", upsampling=1, coordinates="global")
    field = build_field(config)
    params = jax.eval_shape(field.init, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
    assert multiply_adds(field, params, latents) == pytest.approx(0.27106e9, rel=2e-5)
    # The published map has a bias too, one for each of 5 * 256 modulations.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 5 * 256 == 286_467


def test_loops_branches_and_unused_results():
    def loop(x, matrix):
        # Each iteration's product is used by the next one only.
        return jax.lax.scan(lambda x, _: (x @ matrix, x), x, None, length=7)[1]

    def branch(x, matrix):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ matrix @ matrix, lambda x: x @ matrix, x)

    def unused(x, matrix):
        _ = jax.jit(jnp.matmul)(x, matrix)
        return jax.jit(lambda x, y: (x @ y, x @ y @ y))(x, matrix)[0]

    assert multiply_adds(loop, MATRIX, MATRIX) == 7 * 64
    assert multiply_adds(branch, MATRIX, MATRIX) == 2 * 64
    assert multiply_adds(unused, MATRIX, MATRIX) == 64
    assert multiply_adds(lambda x: x + x, MATRIX) == 0
    with pytest.raises(ValueError, match="while"):
        multiply_adds(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), MATRIX
        )


def convolve(image, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID", dimension_numbers=layout)


def test_a_strided_convolution_and_its_gradients():
    """2x2 windows side by side: each pixel meets the kernel once, forward and in both derivatives."""
    image = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)
    forward = 6 * 6 * 3 * 5
    assert multiply_adds(convolve, image, kernel) == forward
    assert 2 * forward == jax.jit(convolve).lower(image, kernel).cost_analysis()["flops"]
    gradients = jax.grad(lambda *inputs: convolve(*inputs).sum(), argnums=(0, 1))
    assert multiply_adds(gradients, image, kernel) == 2 * forward


def test_muon_multiplies_at_highest_precision():
    """The Gram matrix, five steps with its square and four with two products more, four factors, the result."""
    n, m = 8, 24
    for shape in ((n, m), (m, n)):
        found = operations.count(optimizers.orthogonalize, jax.ShapeDtypeStruct(shape, jnp.float32))
        assert found.multiply_adds == 0
        assert found.multiply_adds_highest == found.all_multiply_adds == 2 * n * n * m + 17 * n**3


@pytest.mark.parametrize(
    ("collective", "expected"),
    [
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), 2 * 7 / 8 * 400),
        (lambda x: jax.lax.psum(x, "cell"), 0),
        (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 1 / 2 * 800),
        (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), 3 / 4 * 400),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 2)]), 400),
        (lambda x: jax.lax.scan(lambda x, _: (jax.lax.psum(x, "data"), None), x, length=3)[0], 3 * 2 * 3 / 4 * 400),
    ],
)  # fmt: skip
def test_bytes_sent_by_a_device_of_a_ring(collective, expected):
    mesh = mesh_of(data=4, fsdp=2)
    function = jax.shard_map(
        collective, mesh=mesh, in_specs=P(), out_specs=P(("data",)), check_vma=False
    )
    found = operations.count(function, jax.ShapeDtypeStruct((100,), jnp.float32))
    assert found.sent_bytes == pytest.approx(expected)
    assert found.collectives == (1 if expected else 0)


def test_a_step_sends_the_gradient_once():
    config = digits.get_config("tiny")
    config.classify.model.update(width=128, heads=2)
    config.mesh.fsdp = 4
    alone, eight = (
        Programs(config).train_step("classify", mesh)
        for mesh in (mesh_of(), mesh_of(data=2, fsdp=4))
    )
    assert alone.count_operations().sent_bytes == 0
    shapes = [leaf.shape for leaf in jax.tree.leaves(eight.arguments[0].params)]
    sharded = 4 * sum(int(np.prod(shape)) for shape in shapes if np.prod(shape) >= 1 << 14)
    replicated = 4 * sum(int(np.prod(shape)) for shape in shapes) - sharded
    assert sharded > 0
    # Sharded parameters are gathered, their gradients scattered and summed over `data`.
    expected = 2 * 7 / 8 * replicated + 2 * 3 / 4 * sharded + 2 * 1 / 2 * sharded / 4
    assert (
        expected < eight.count_operations().sent_bytes < expected + 2 * 4 * 20
    )  # and values to log
    # Parameters, their average and two moments.
    saved = device_bytes(alone.arguments[0]) - device_bytes(eight.arguments[0])
    assert saved == 4 * (sharded - sharded // 4)


def test_a_step_is_counted_for_one_device():
    config = digits.get_config("tiny")
    programs = Programs(config)

    def count(batch_size, **mesh):
        step = programs.train_step("meta_learn", mesh_of(**mesh), batch_size=batch_size)
        return step.count_operations()

    one, same, double = count(4), count(16, data=4), count(8)
    assert same.multiply_adds == one.multiply_adds
    assert same.multiply_adds_highest == one.multiply_adds_highest == double.multiply_adds_highest
    # The shared first inner step does not depend on the batch.
    assert 1.5 * one.multiply_adds < double.multiply_adds < 2 * one.multiply_adds


def test_encoding_and_second_order_training_in_units_of_a_forward_pass():
    """Three inner steps without products of the shared first one: 5 forward passes, and 15 with both derivatives."""
    config = cifar10_spatial.get_config("8x8x16,nearest,tiny")
    config.field.update(map="linear", upsampling=1, width=64)
    config.encode.batch_size = 16
    config.meta_learn.update(cells_per_image=0, batch_size=16)
    field = build_field(config)
    params = jax.eval_shape(field.init, jax.random.key(0))
    forward = multiply_adds(field, params, jax.ShapeDtypeStruct((16, 8, 8, 16), jnp.float32))
    programs = Programs(config)
    encoder, step = programs.encoder(mesh_of()), programs.train_step("meta_learn", mesh_of())
    assert programs.encoder(mesh_of(data=4)).arguments[1].shape == (4 * 16, 32, 32, 3)
    assert encoder.count_operations().multiply_adds == pytest.approx(5 * forward, rel=0.05)
    assert step.count_operations().multiply_adds == pytest.approx(15 * forward, rel=0.05)
