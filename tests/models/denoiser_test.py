"""Denoisers: shapes, parts against NumPy, zero initial output, and training on a few examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from functa.diffusion import parameterization
from functa.models import classifier, denoiser, transformer
from tests.models.transformer_test import (
    attention_reference,
    dense,
    feed_forward_reference,
    randomize,
)

LARGE = {"remat": False, "dtype": "float32"}
SMALL = {
    "dit": {"name": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2, "mlp_width": 24}
    | LARGE,
    "unet": {"name": "unet", "widths": (16, 24), "depths": (1, 1), "heads": 2} | LARGE,
    "mlp": {"name": "mlp", "width": 80, "depth": 2, "mlp_width": 24},
}
CLASSES = 5
GRID = (4, 6, 3)
BATCH = 24
CONDITION = np.linspace(-1.7, 0.9, BATCH).astype(np.float32)
LABELS = np.arange(BATCH, dtype=np.int32) % (CLASSES + 1)


def random_inputs(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = random_inputs((BATCH, *GRID))


def make_network(name, **changes):
    return denoiser.make_denoiser(num_classes=CLASSES, **(SMALL[name] | changes))


def shapes(network, grid=GRID):
    """(params, output) of a denoiser on a grid, as shapes."""
    key, inputs = jax.random.key(0), jax.ShapeDtypeStruct((BATCH, *grid), jnp.float32)
    init = network.init_with_output
    output, variables = jax.eval_shape(init, key, inputs, CONDITION, LABELS)
    return variables["params"], output


@functools.cache
def compiled_apply(name):
    """apply(params, inputs, condition, labels)."""
    network = make_network(name)
    return jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))


@functools.cache
def initial_params(name):
    init = jax.jit(make_network(name).init)
    return init(jax.random.key(0), INPUTS, CONDITION, LABELS)["params"]


@functools.cache
def random_params(name):
    """All random, because initial outputs and gates of zero would hide errors."""
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(make_network(name))[0])
    return randomize(zeros)


def denoise(name, inputs=INPUTS, condition=CONDITION, labels=LABELS):
    return np.asarray(compiled_apply(name)(random_params(name), inputs, condition, labels))


@pytest.mark.parametrize("grid", [(2, 2, 8), (8, 8, 16), (1, 1, 7)])
@pytest.mark.parametrize("name", SMALL)
def test_output_has_the_shape_of_the_input(name, grid):
    one_cell = {"dit": {"patch": 1}, "unet": {"widths": (16,), "depths": (1,)}, "mlp": {}}
    network = make_network(name, **(one_cell[name] if grid[0] == 1 else {}))
    output = shapes(network, grid)[1]
    assert (output.shape, output.dtype) == ((BATCH, *grid), jnp.float32)


@pytest.mark.parametrize("name", SMALL)
def test_output_of_an_example_does_not_depend_on_the_batch(name):
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = denoise(name, INPUTS[order], CONDITION[order], LABELS[order])
    np.testing.assert_allclose(permuted, denoise(name)[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_initial_output_is_zero(name):
    output = compiled_apply(name)(initial_params(name), INPUTS, CONDITION, LABELS)
    np.testing.assert_array_equal(output, np.zeros_like(INPUTS))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (denoiser.ResidualBlock(width=16, dtype="float32"), (2, 2, 3, 16)),
        (
            denoiser.AdaptiveResidual(branch=transformer.FeedForward(mlp_width=8, dtype="float32")),
            (2, 6, 16),
        ),
    ],
)
def test_initial_residual_branches_are_zero(module, shape):
    x = random_inputs(shape)
    init = jax.jit(module.init_with_output)
    output, _ = init(jax.random.key(0), x, random_inputs((2, 5)))
    np.testing.assert_array_equal(output, x)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def embedding_reference(params, condition, label):
    phases = condition * 0.5 * 200.0 ** (np.arange(64) / 63)
    features = np.concatenate([np.cos(phases), np.sin(phases)])
    level = dense(params["output"], silu(dense(params["hidden"], features)))
    return silu(level + np.asarray(params["classes"])[0, label])


def modulation(params, embedding, count):
    return np.split(dense(params["modulation"]["dense"], embedding), count)


def adaptive_reference(params, x, embedding, branch):
    shift, scale, gate = modulation(params, embedding, 3)
    return x + gate * branch(layer_norm(x) * (1 + scale) + shift)


def output_reference(params, x, embedding):
    shift, scale = modulation(params, embedding, 2)
    return dense(params["dense"], layer_norm(x) * (1 + scale) + shift)


def blocks_reference(params, x, embedding, depth, heads):
    """Blocks of DiT, or of the MLP if heads is 0, on tokens [n, width]."""
    for number in range(depth):
        if heads:
            x = adaptive_reference(
                params[f"adaptive_attention_{number}"],
                x,
                embedding,
                lambda h: attention_reference(params[f"attention_{number}"], h[None], heads)[0],
            )
        x = adaptive_reference(
            params[f"adaptive_feed_forward_{number}"],
            x,
            embedding,
            lambda h: feed_forward_reference(params[f"feed_forward_{number}"], h),
        )
    return output_reference(params["output"], x, embedding)


def dit_reference(params, grid, embedding):
    """One example [4, 6, d] in patches of 2x2."""
    corners = [(row, column) for row in (0, 2) for column in (0, 2, 4)]
    tokens = np.stack([grid[r : r + 2, c : c + 2].reshape(-1) for r, c in corners])
    x = dense(params["patches"], tokens) + np.asarray(params["position"])[0]
    outputs = blocks_reference(params, x, embedding, depth=2, heads=2)
    whole = np.zeros_like(grid)
    for (r, c), patch in zip(corners, outputs, strict=True):
        whole[r : r + 2, c : c + 2] = patch.reshape(2, 2, -1)
    return whole


def mlp_reference(params, grid, embedding):
    x = dense(params["latents"], grid.reshape(1, -1))
    return blocks_reference(params, x, embedding, depth=2, heads=0).reshape(grid.shape)


def conv_reference(params, x):
    i, j, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    kernel, bias = (np.asarray(params[key], np.float64) for key in ("kernel", "bias"))
    kernel = kernel.reshape(3, 3, x.shape[-1], -1)
    return np.stack(
        [
            [
                np.einsum("rck,rcko->o", padded[row : row + 3, column : column + 3], kernel) + bias
                for column in range(j)
            ]
            for row in range(i)
        ]
    )


def group_norm_reference(params, x):
    groups = np.stack(np.split(x, denoiser.GROUPS, axis=-1))
    mean = groups.mean(axis=(1, 2, 3), keepdims=True)
    variance = groups.var(axis=(1, 2, 3), keepdims=True)
    whole = np.concatenate(list((groups - mean) / np.sqrt(variance + 1e-6)), axis=-1)
    return whole * np.asarray(params["scale"]) + np.asarray(params["bias"])


def residual_reference(params, x, embedding):
    hidden = conv_reference(params["hidden"], silu(group_norm_reference(params["norm"], x)))
    shift, scale = modulation(params, embedding, 2)
    hidden = group_norm_reference(params["adaptive_norm"], hidden) * (1 + scale) + shift
    shortcut = dense(params["shortcut"], x) if "shortcut" in params else x
    return shortcut + conv_reference(params["output"], silu(hidden))


def unet_reference(params, x, embedding):
    """One example [4, 6, d]."""

    def block(name, x):
        return residual_reference(params[name], x, embedding)

    first = block("down_0_0", conv_reference(params["latents"], x))
    halves = np.stack(
        [
            [first[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(-1) for c in range(3)]
            for r in range(2)
        ]
    )
    second = block("down_1_0", dense(params["halve_1"], halves))
    x = adaptive_reference(
        params["adaptive_attention"],
        second.reshape(6, -1),
        embedding,
        lambda h: attention_reference(params["attention"], h[None], 2)[0],
    ).reshape(second.shape)
    x = block("up_1_0", np.concatenate([x, second], axis=-1))
    doubled = dense(params["double_0"], x).reshape(2, 3, 2, 2, -1)
    whole = np.zeros_like(first)
    for row in range(4):
        for column in range(6):
            whole[row, column] = doubled[row // 2, column // 2, row % 2, column % 2]
    x = block("up_0_0", np.concatenate([whole, first], axis=-1))
    return conv_reference(params["output"], silu(group_norm_reference(params["norm"], x)))


@pytest.mark.parametrize(
    ("name", "reference"),
    [("dit", dit_reference), ("unet", unet_reference), ("mlp", mlp_reference)],
)
def test_output_matches_the_reference(name, reference):
    output, params = denoise(name), random_params(name)
    for k in (0, 5, 17):
        embedding = embedding_reference(params["embedding"], CONDITION[k], LABELS[k])
        expected = reference(params, INPUTS[k].astype(np.float64), embedding)
        np.testing.assert_allclose(output[k], expected, rtol=1e-3, atol=2e-3)


def test_initial_positions_are_sines_and_cosines_of_row_and_column():
    positions = np.asarray(denoiser.sine_positions(2, 3, 8)).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for position in (row, column):
                expected += [np.sin(position), np.sin(position / 100)]
                expected += [np.cos(position), np.cos(position / 100)]
            np.testing.assert_allclose(positions[row, column], expected, atol=1e-6)
    expected = denoiser.sine_positions(2, 3, 16)
    np.testing.assert_array_equal(initial_params("dit")["position"][0], expected)


@pytest.mark.parametrize("name", SMALL)
def test_training_fits_four_examples(name):
    edm = parameterization.make_parameterization(
        name="edm", prediction="edm", distribution="normal", mean=0.0, std=1.0
    )
    labels = np.arange(BATCH, dtype=np.int32) % 4
    latents = INPUTS[labels]
    optimizer = optax.adam(1e-2)
    # One vector of parameters: Adam on seventy arrays takes seconds to compile.
    start, restore = ravel_pytree(initial_params(name))

    def loss(params, key):
        batch = parameterization.sample_noise_and_labels(
            edm, key, latents, jnp.asarray(labels), null_class=CLASSES, label_dropout=0.0
        )
        network = functools.partial(compiled_apply(name), restore(params))
        return jnp.mean(parameterization.losses(edm, network, latents, batch))

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    # Tests run without optimizations of the compiler (conftest.py); 160 steps are worth them.
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}

    @functools.partial(jax.jit, compiler_options=options if name == "unet" else None)
    def train(params):
        keys = jax.random.split(jax.random.key(1), 160)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    losses = np.asarray(train(start))
    assert 0.8 < losses[0] < 1.2
    assert losses[-20:].mean() < 0.3


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_applies_to_kernels_only(name):
    mask = classifier.decay_mask(shapes(make_network(name))[0])
    leaf_names = {True: set(), False: set()}
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(mask):
        leaf_names[is_decayed].add(path[-1].key)
    extra = {"dit": {"position"}, "unet": {"scale"}, "mlp": set()}[name]
    assert leaf_names == {True: {"kernel"}, False: {"bias", "classes"} | extra}


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_unsuitable_grids_are_named(name):
    with pytest.raises(ValueError, match="4x3"):
        shapes(make_network(name), (4, 3, 2))


FEW = tuple(values[:3] for values in (INPUTS, CONDITION, LABELS))


@functools.cache
def output_and_gradient(name, **changes):
    """Of three examples, as a list of arrays."""
    network = make_network(name, **changes)

    def loss(params):
        output = network.apply({"params": params}, *FEW)
        return jnp.sum(jnp.sin(output)), output

    return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(random_params(name)))


@pytest.mark.parametrize(
    ("name", "changes", "tolerance"),
    [
        ("dit", {"remat": True}, 1e-4),
        ("dit", {"remat": True, "dtype": "bfloat16"}, 0.1),
        ("unet", {"remat": True, "dtype": "bfloat16"}, 0.1),
        pytest.param("unet", {"remat": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_dtype_and_remat_keep_output_and_gradients(name, changes, tolerance):
    pairs = zip(output_and_gradient(name), output_and_gradient(name, **changes), strict=True)
    for a, b in pairs:
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())
