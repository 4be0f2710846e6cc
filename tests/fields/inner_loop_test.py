import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.fields import coordinates, inner_loop, linearization
from tests.fields.field_test import make_field, with_random_map

FIELDS = {
    "nearest": {},
    "nearest, sub-cells": {"map": "conv3x3", "upsampling": 2},
    "nearest, places differ": {"coordinates": "global", "map": "conv3x3", "upsampling": 2},
    "nearest, mlp": {"map": "mlp", "modulation": "shift_scale", "upsampling": 2},
    "bilinear": {"interpolation": "bilinear", "coordinates": "periodic"},
    "bilinear, conv": {"interpolation": "bilinear", "coordinates": "binary", "map": "conv3x3"},
    "bilinear, sub-cells, not square": {
        "interpolation": "bilinear",
        "coordinates": "periodic",
        "map": "conv3x3",
        "upsampling": 2,
        "image_shape": (8, 12, 3),
        "latent_shape": (2, 3, 4),
    },
    "bilinear, mlp": {"interpolation": "bilinear", "map": "mlp", "upsampling": 2},
}


def inner_loop_of(**changes):
    settings = dict(
        steps=3,
        lr_shape="channel",
        lr_per_step=True,
        initial_lr=0.1,
        min_lr=1e-3,
        max_lr=1e3,
        second_order=True,
        chunks=1,
    )
    return inner_loop.InnerLoop(**(settings | changes))


def slow_root(field):
    """Reference: inverse square root of the Gram matrix of interpolation, over all cells: [i, j, i, j]."""
    (h, w, _), (i, j, _), u = field.image_shape, field.latent_shape, field.upsampling
    if field.interpolation == "nearest":
        return np.eye(i * j, dtype=np.float32).reshape(i, j, i, j)
    axes = [
        coordinates.interpolation_matrix(coordinates.pixel_centers(size), cells * u).astype(
            np.float64
        )
        @ np.repeat(np.eye(cells), u, axis=0)
        for size, cells in ((h, i), (w, j))
    ]
    pixels = np.kron(*axes)
    values, vectors = np.linalg.eigh(pixels.T @ pixels * (i * j) / (h * w))
    return (vectors / np.sqrt(values) @ vectors.T).reshape(i, j, i, j).astype(np.float32)


def slow_fit(field, params, log_lrs, image, steps):
    """Reference: one image, all gradients by automatic differentiation, descent on u, latents = root @ u."""
    i, j, _ = field.latent_shape
    h, w, c = image.shape
    root = slow_root(field)

    def loss(latents):
        errors = jnp.square(field(params, latents[None])[0] - image)
        cells = errors.reshape(i, h // i, j, w // j, c).mean((1, 3, 4))
        return cells.sum()

    latents = jnp.zeros(field.latent_shape)
    rates = jnp.exp(log_lrs)
    for step in range(steps):
        rate = rates[step if len(rates) > 1 else 0]
        gradient = jnp.einsum("ijab,ijd->abd", root, jax.grad(loss)(latents))
        latents = latents - jnp.einsum("abij,ijd->abd", root, rate * gradient)
    return latents, jnp.mean(jnp.square(field(params, latents[None])[0] - image))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(5), (2, 8, 8, 3))


@pytest.mark.parametrize("name", FIELDS)
def test_fit_and_outer_gradients_match_the_reference(name):
    field = make_field(**FIELDS[name])
    images = jax.random.uniform(jax.random.key(5), (2, *field.image_shape))
    params = with_random_map(field.init(jax.random.key(0)))
    shape = inner_loop_of(steps=3).lrs_shape(field.latent_shape)
    log_lrs = jax.random.uniform(jax.random.key(2), shape, minval=-1.0, maxval=2.0)

    def fast(params, log_lrs):
        fit = inner_loop.fit(field, params, log_lrs, images, steps=3, second_order=True)
        return fit.losses[-1].mean(), fit

    def slow(params, log_lrs):
        one = functools.partial(slow_fit, field, params, log_lrs, steps=3)
        latents, losses = jax.vmap(one)(images)
        return losses.mean(), latents

    ((value, fit), gradients), ((expected, latents), slow_gradients) = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, log_lrs)
        for loss in (fast, slow)
    )
    np.testing.assert_allclose(fit.latents, latents, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(fit.values, field(params, fit.latents), atol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(slow_gradients), strict=True):
        assert float(jnp.linalg.norm((one - other).ravel())) <= 1e-5 * float(
            jnp.linalg.norm(other.ravel())
        )


@pytest.mark.parametrize(
    ("name", "second_order"),
    [("nearest", False), ("nearest, places differ", True), ("nearest, mlp", True)],
)
def test_chunks_do_not_change_results(name, second_order):
    """Values, latents and outer gradients agree to rounding."""
    field = make_field(**FIELDS[name])
    images = jax.random.uniform(jax.random.key(5), (2, *field.image_shape))
    params = with_random_map(field.init(jax.random.key(0)))
    log_lrs = jnp.zeros((3, 1, 1, 1))

    def loss(params, log_lrs, chunks):
        fit = inner_loop.fit(
            field, params, log_lrs, images, steps=3, second_order=second_order, chunks=chunks
        )
        return fit.losses[-1].mean(), fit

    results = []
    for chunks in (1, 2):
        program = jax.jit(
            jax.value_and_grad(functools.partial(loss, chunks=chunks), argnums=(0, 1), has_aux=True)
        )
        results.append(program(params, log_lrs))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        difference = float(jnp.linalg.norm((one - other).ravel()))
        assert difference <= 1e-5 * float(jnp.linalg.norm(other.ravel()))


def test_chunks_need_less_memory():
    """By the memory analysis of the compiled outer gradient."""
    field = make_field(image_shape=(64, 64, 3), latent_shape=(16, 16, 4), width=64)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(field.init, jax.random.key(0))

    def temporaries(chunks):
        def loss(params, images):
            fit = inner_loop.fit(
                field, params, jnp.zeros((1, 1, 1, 1)), images,
                steps=3, second_order=True, chunks=chunks,
            )  # fmt: skip
            return fit.losses[-1].mean()

        compiled = jax.jit(jax.grad(loss)).lower(params, images).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 4


@pytest.mark.parametrize(
    ("field", "chunks", "message"),
    [
        ({}, 3, "chunks=3 must divide the"),
        ({}, 0, "chunks=0 must divide the"),
        (FIELDS["bilinear"], 2, "chunks=2 needs field.interpolation"),
    ],
)
def test_impossible_chunks_are_rejected(field, chunks, message):
    with pytest.raises(ValueError, match=message):
        inner_loop.validate_chunks(make_field(**field), chunks)


@pytest.mark.parametrize(
    ("lr_shape", "lr_per_step"),
    [("scalar", False), ("channel", True), ("cell", False), ("full", True)],
)
def test_every_shape_of_inner_learning_rates(lr_shape, lr_per_step, images):
    field = make_field()
    params = with_random_map(field.init(jax.random.key(0)))
    settings = inner_loop_of(steps=2, lr_shape=lr_shape, lr_per_step=lr_per_step)
    shape = settings.lrs_shape(field.latent_shape)
    log_lrs = jax.random.normal(jax.random.key(1), shape)
    fit = inner_loop.fit(field, params, log_lrs, images, steps=2, second_order=True)
    latents, loss = slow_fit(field, params, log_lrs, images[1], 2)
    np.testing.assert_allclose(fit.latents[1], latents, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fit.losses[-1, 1], loss, rtol=1e-5)


def test_losses_are_those_before_each_step(images):
    field = make_field()
    params = with_random_map(field.init(jax.random.key(0)))
    log_lrs = jnp.zeros((1, 1, 1, 1))
    three = inner_loop.fit(field, params, log_lrs, images, steps=3, second_order=True).losses
    assert three.shape == (4, 2)
    for steps in (1, 2):
        fewer = inner_loop.fit(field, params, log_lrs, images, steps=steps, second_order=True)
        np.testing.assert_allclose(fewer.losses, three[: steps + 1], rtol=1e-6)


def test_first_order_changes_only_outer_gradients(images):
    field = make_field()
    params = with_random_map(field.init(jax.random.key(0)))
    log_lrs = jnp.ones((1, 1, 1, 1))

    def loss(params, second_order):
        fit = inner_loop.fit(field, params, log_lrs, images, steps=2, second_order=second_order)
        return fit.losses[-1].mean()

    assert float(loss(params, True)) == float(loss(params, False))
    second, first = (
        jax.grad(loss)(params, order)["siren"]["weights"][1] for order in (True, False)
    )
    assert float(jnp.abs(second - first).max()) > 1e-6
    # First order is the derivative with the latents held fixed.
    latents = inner_loop.fit(field, params, log_lrs, images, steps=2, second_order=True).latents
    fixed = jax.grad(lambda p: jnp.mean(jnp.square(field(p, latents) - images)))(params)
    np.testing.assert_allclose(first, fixed["siren"]["weights"][1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", FIELDS)
def test_spectral_radius_is_the_largest_eigenvalue(name):
    field = make_field(**FIELDS[name])
    params = with_random_map(field.init(jax.random.key(0)))
    zeros = jnp.zeros(field.latent_shape)
    jacobian = jax.jacobian(lambda z: field(params, z[None])[0])(zeros).reshape(-1, zeros.size)
    cells = field.latent_shape[0] * field.latent_shape[1]
    root = np.kron(slow_root(field).reshape(cells, cells), np.eye(field.latent_shape[2]))
    jacobian = np.asarray(jacobian) @ root
    hessian = 2 / (4 * 4 * 3) * jacobian.T @ jacobian
    rates = np.random.default_rng(0).uniform(0.5, 2, (2, *field.latent_shape)).astype(np.float32)
    measured = jax.jit(functools.partial(linearization.spectral_radius, field))(
        params, np.log(rates)
    )
    for radius, rate in zip(measured, rates, strict=True):
        root = np.sqrt(rate.ravel())
        expected = np.linalg.eigvalsh(root[:, None] * hessian * root).max()
        np.testing.assert_allclose(radius, expected, rtol=0.03)


def test_images_of_another_dtype_are_rejected():
    field = make_field()
    with pytest.raises(ValueError, match=r"uint8\[8, 8, 3\]"):
        inner_loop.fit(
            field,
            field.init(jax.random.key(0)),
            jnp.zeros((1, 1, 1, 1)),
            jnp.zeros((1, 8, 8, 3), jnp.uint8),
            steps=1,
            second_order=True,
        )
