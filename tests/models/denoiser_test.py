"""Denoisers: shapes, parts against slow NumPy, zero before training, and that each can learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from functa.diffusion import parameterization
from functa.models import classifier, denoiser, transformer
from tests.models.transformer_test import dense, randomize, slow_attention, slow_feed_forward
from tests.support import fingerprints

SMALL = {
    "dit": {
        "name": "dit",
        "patch": 2,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "remat": False,
        "dtype": "float32",
        "mlp_width": 24,
    },
    "unet": {
        "name": "unet",
        "widths": (16, 24),
        "depths": (1, 1),
        "remat": False,
        "dtype": "float32",
        "heads": 2,
    },
    "mlp": {"name": "mlp", "width": 80, "depth": 2, "mlp_width": 24},
}
CLASSES = 5
GRID = (4, 6, 3)
CELLS = BATCH = 24
CONDITION = np.linspace(-1.7, 0.9, BATCH).astype(np.float32)
LABELS = np.arange(BATCH, dtype=np.int32) % (CLASSES + 1)


def inputs_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = inputs_of((BATCH, *GRID))


def make(model, **changes):
    return denoiser.make_denoiser(num_classes=CLASSES, **(SMALL[model] | changes))


def shapes(module, grid=GRID):
    """(params, said) of a denoiser on a grid, as shapes."""
    key, inputs = jax.random.key(0), jax.ShapeDtypeStruct((BATCH, *grid), jnp.float32)
    said, variables = jax.eval_shape(module.init_with_output, key, inputs, CONDITION, LABELS)
    return variables["params"], said


@functools.cache
def program(name):
    """apply(params, inputs, condition, labels), compiled once for all tests."""
    module = make(name)
    return jax.jit(lambda params, *told: module.apply({"params": params}, *told))


@functools.cache
def fresh(name):
    """Params before training."""
    init = jax.jit(make(name).init)
    return init(jax.random.key(0), INPUTS, CONDITION, LABELS)["params"]


@functools.cache
def trained(name):
    """Params that are all random: fresh outputs and gates are zero and would hide the rest."""
    return randomize(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(make(name))[0]))


def say(name, inputs=INPUTS, condition=CONDITION, labels=LABELS):
    return np.asarray(program(name)(trained(name), inputs, condition, labels))


@pytest.mark.parametrize("grid", [(2, 2, 8), (4, 6, 3), (8, 8, 16), (1, 1, 7)])
@pytest.mark.parametrize("name", SMALL)
def test_denoised_latents_have_the_shape_of_the_noisy_ones(name, grid):
    one_cell = {"dit": {"patch": 1}, "unet": {"widths": (16,), "depths": (1,)}, "mlp": {}}
    said = shapes(make(name, **(one_cell[name] if grid[0] == 1 else {})), grid)[1]
    assert said.shape == (BATCH, *grid)
    assert said.dtype == jnp.float32


@pytest.mark.parametrize("name", SMALL)
def test_each_example_by_itself(name):
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = say(name, INPUTS[order], CONDITION[order], LABELS[order])
    np.testing.assert_allclose(permuted, say(name)[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_everything_that_is_told_counts(name):
    same = [np.repeat(told[:1], BATCH, axis=0) for told in (INPUTS, CONDITION, LABELS)]
    said = say(name, *same)
    inputs, condition, labels = same

    def differences(*changed):
        return np.abs(say(name, *changed) - said)

    assert differences(inputs, condition + np.float32(0.02), labels).max() > 1e-3
    levels = say(name, inputs, np.linspace(-2, 2, BATCH).astype(np.float32), labels)
    assert len(np.unique(levels[:, 0, 0, 0].round(4))) == BATCH
    classes = say(name, inputs, condition, LABELS)
    assert len(np.unique(classes[:, 0, 0, 0].round(4))) == CLASSES + 1
    # every cell hears of every other one, and where it is
    at = np.arange(CELLS)
    moved = inputs.copy()
    moved[at, at // GRID[1], at % GRID[1]] += 1
    assert differences(moved, condition, labels).max(axis=-1).min() > 1e-5
    flipped = say(name, inputs[:, ::-1], condition, labels)[:, ::-1]
    assert np.abs(flipped - said).max() > 1e-2


@pytest.mark.parametrize("name", SMALL)
def test_before_training_nothing_is_said(name):
    said = program(name)(fresh(name), INPUTS, CONDITION, LABELS)
    np.testing.assert_array_equal(said, np.zeros_like(INPUTS))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (denoiser.ResidualBlock(width=16, dtype="float32"), (2, 2, 3, 16)),
        (
            denoiser.Adaptive(branch=transformer.FeedForward(mlp_width=8, dtype="float32")),
            (2, 6, 16),
        ),
    ],
)
def test_before_training_no_branch_adds_anything(module, shape):
    x = inputs_of(shape)
    said, _ = jax.jit(module.init_with_output)(jax.random.key(0), x, inputs_of((2, 5)))
    np.testing.assert_array_equal(said, x)


def normal(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def slow_embedding(params, condition, label):
    phases = condition * 0.5 * 200.0 ** (np.arange(64) / 63)
    features = np.concatenate([np.cos(phases), np.sin(phases)])
    level = dense(params["output"], silu(dense(params["hidden"], features)))
    return silu(level + np.asarray(params["classes"])[0, label])


def modulation(params, embedding, count):
    return np.split(dense(params["modulation"]["dense"], embedding), count)


def slow_adaptive(params, x, embedding, branch):
    shift, scale, gate = modulation(params, embedding, 3)
    return x + gate * branch(normal(x) * (1 + scale) + shift)


def slow_output(params, x, embedding):
    shift, scale = modulation(params, embedding, 2)
    return dense(params["dense"], normal(x) * (1 + scale) + shift)


def slow_blocks(params, x, embedding, depth, heads):
    """Blocks of DiT, or of the MLP where heads is 0, on tokens [n, width]."""
    for number in range(depth):
        if heads:
            x = slow_adaptive(
                params[f"adaptive_attention_{number}"],
                x,
                embedding,
                lambda h: slow_attention(params[f"attention_{number}"], h[None], heads)[0],
            )
        x = slow_adaptive(
            params[f"adaptive_feed_forward_{number}"],
            x,
            embedding,
            lambda h: slow_feed_forward(params[f"feed_forward_{number}"], h),
        )
    return slow_output(params["output"], x, embedding)


def slow_dit(params, grid, embedding):
    """One example [4, 6, d], in patches of 2 x 2, one after the other."""
    corners = [(row, column) for row in (0, 2) for column in (0, 2, 4)]
    tokens = np.stack([grid[r : r + 2, c : c + 2].reshape(-1) for r, c in corners])
    x = dense(params["patches"], tokens) + np.asarray(params["position"])[0]
    said = slow_blocks(params, x, embedding, depth=2, heads=2)
    whole = np.zeros_like(grid)
    for (r, c), patch in zip(corners, said, strict=True):
        whole[r : r + 2, c : c + 2] = patch.reshape(2, 2, -1)
    return whole


def slow_mlp(params, grid, embedding):
    x = dense(params["latents"], grid.reshape(1, -1))
    return slow_blocks(params, x, embedding, depth=2, heads=0).reshape(grid.shape)


def slow_conv(params, x):
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


def slow_group_norm(params, x):
    groups = np.stack(np.split(x, denoiser.GROUPS, axis=-1))
    mean = groups.mean(axis=(1, 2, 3), keepdims=True)
    variance = groups.var(axis=(1, 2, 3), keepdims=True)
    whole = np.concatenate(list((groups - mean) / np.sqrt(variance + 1e-6)), axis=-1)
    return whole * np.asarray(params["scale"]) + np.asarray(params["bias"])


def slow_residual(params, x, embedding):
    hidden = slow_conv(params["hidden"], silu(slow_group_norm(params["norm"], x)))
    shift, scale = modulation(params, embedding, 2)
    hidden = slow_group_norm(params["adaptive_norm"], hidden) * (1 + scale) + shift
    shortcut = dense(params["shortcut"], x) if "shortcut" in params else x
    return shortcut + slow_conv(params["output"], silu(hidden))


def slow_unet(params, x, embedding):
    """One example [4, 6, d]: down, then up again."""

    def block(name, x):
        return slow_residual(params[name], x, embedding)

    first = block("down_0_0", slow_conv(params["latents"], x))
    halves = np.stack(
        [
            [first[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(-1) for c in range(3)]
            for r in range(2)
        ]
    )
    second = block("down_1_0", dense(params["halve_1"], halves))
    x = slow_adaptive(
        params["adaptive_attention"],
        second.reshape(6, -1),
        embedding,
        lambda h: slow_attention(params["attention"], h[None], 2)[0],
    ).reshape(second.shape)
    x = block("up_1_0", np.concatenate([x, second], axis=-1))
    doubled = dense(params["double_0"], x).reshape(2, 3, 2, 2, -1)
    whole = np.zeros_like(first)
    for row in range(4):
        for column in range(6):
            whole[row, column] = doubled[row // 2, column // 2, row % 2, column % 2]
    x = block("up_0_0", np.concatenate([whole, first], axis=-1))
    return slow_conv(params["output"], silu(slow_group_norm(params["norm"], x)))


@pytest.mark.parametrize(
    ("name", "slow"), [("dit", slow_dit), ("unet", slow_unet), ("mlp", slow_mlp)]
)
def test_denoisers_are_the_slow_ones(name, slow):
    said, params = say(name), trained(name)
    for number in (0, 5, 17):
        embedding = slow_embedding(params["embedding"], CONDITION[number], LABELS[number])
        expected = slow(params, INPUTS[number].astype(np.float64), embedding)
        np.testing.assert_allclose(said[number], expected, rtol=1e-3, atol=2e-3)


def test_positions_are_sines_and_cosines_of_row_and_column():
    positions = np.asarray(denoiser.sine_positions(2, 3, 8)).reshape(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (row, column):
                expected += [np.sin(place), np.sin(place / 100)]
                expected += [np.cos(place), np.cos(place / 100)]
            np.testing.assert_allclose(positions[row, column], expected, atol=1e-6)
    np.testing.assert_array_equal(fresh("dit")["position"][0], denoiser.sine_positions(2, 3, 16))


@pytest.mark.parametrize("name", SMALL)
def test_a_few_examples_are_learnt_by_heart(name):
    """Four latents, each of its class: the loss falls to a small part of what saying nothing costs."""
    frame = parameterization.make_frame(
        name="edm", prediction="edm", distribution="normal", mean=0.0, std=1.0
    )
    labels = np.arange(BATCH, dtype=np.int32) % 4
    latents = INPUTS[labels]
    optimizer = optax.adam(1e-2)

    # one vector of params: Adam of seventy arrays takes seconds to compile
    start, restore = ravel_pytree(fresh(name))

    def loss(params, key):
        drawn = parameterization.draw(
            frame, key, latents, jnp.asarray(labels), null_class=CLASSES, label_dropout=0.0
        )
        network = functools.partial(program(name), restore(params))
        return jnp.mean(parameterization.losses(frame, network, latents, drawn))

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    # 160 steps are worth the optimisations that tests go without (conftest.py).
    optimized = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}

    @functools.partial(jax.jit, compiler_options=optimized if name == "unet" else None)
    def train(params):
        keys = jax.random.split(jax.random.key(1), 160)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    values = np.asarray(train(start))
    assert 0.8 < values[0] < 1.2
    assert values[-20:].mean() < 0.3


CHANGES = [
    ("dit", {"patch": 1}),
    ("dit", {"width": 24}),
    ("dit", {"depth": 1}),
    ("dit", {"heads": 4}),
    ("dit", {"mlp_width": 20}),
    ("dit", {"dtype": "bfloat16"}),
    ("unet", {"widths": (16, 32)}),
    ("unet", {"depths": (1, 2)}),
    ("unet", {"heads": 4}),
    ("unet", {"dtype": "bfloat16"}),
    ("mlp", {"width": 24}),
    ("mlp", {"depth": 1}),
    ("mlp", {"mlp_width": 20}),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES)
def test_every_key_changes_the_program(name, changes):
    def text(**changes):
        module = make(name, **changes)
        params = {"params": shapes(module)[0]}
        return jax.jit(module.apply).lower(params, INPUTS, CONDITION, LABELS).as_text()

    assert text(**changes) != text()
    assert text() == text()


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_reaches_kernels_alone(name):
    mask = classifier.decay_mask(shapes(make(name))[0])
    decayed = {True: set(), False: set()}
    for path, value in jax.tree_util.tree_leaves_with_path(mask):
        decayed[value].add(path[-1].key)
    extra = {"dit": {"position"}, "unet": {"scale"}, "mlp": set()}[name]
    assert decayed == {True: {"kernel"}, False: {"bias", "classes"} | extra}


@pytest.mark.parametrize("name", SMALL)
def test_a_misspelt_or_missing_key_is_a_type_error(name):
    with pytest.raises(TypeError, match="droput"):
        make(name, droput=0.1)
    key = list(SMALL[name])[-1]
    rest = {other: value for other, value in SMALL[name].items() if other != key}
    with pytest.raises(TypeError, match=key):
        denoiser.make_denoiser(num_classes=CLASSES, **rest)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dit", {"patch": 0, "depth": 0}, "patch=0 must be at least 1; depth=0 must be"),
        ("dit", {"width": 18, "heads": 5}, "width=18 must divide by 4.*18 must divide by heads=5"),
        ("dit", {"heads": 0}, "heads=0 must be at least 1"),
        ("dit", {"dtype": "float64"}, "dtype='float64': known are float32, bfloat16"),
        ("unet", {"widths": (16,)}, r"widths=\(16,\) and depths=\(1, 1\) need one entry"),
        ("unet", {"widths": (), "depths": ()}, "need one entry"),
        ("unet", {"depths": (1, 0)}, "whole numbers of at least 1"),
        ("unet", {"widths": (16, 20)}, r"widths=\(16, 20\) must divide by 8"),
        ("unet", {"heads": 7}, "the width 24 must divide by heads=7"),
        ("mlp", {"mlp_width": 0}, "mlp_width=0 must be at least 1"),
        ("mlp", {"name": "vit"}, "unknown denoiser 'vit'; known are dit, unet, mlp"),
    ],
)
def test_impossible_values_are_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        make(name, **changes)


def test_num_classes_must_be_positive():
    with pytest.raises(ValueError, match="num_classes=0"):
        denoiser.make_denoiser(num_classes=0, **SMALL["mlp"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit", "patch=2 must divide the latent grid 4x3"),
        ("unet", "2 must divide the latent grid 4x3"),
    ],
)
def test_a_grid_that_does_not_suit_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        shapes(make(name), (4, 3, 2))


# Of the version before remat and dtype, as EARLIER of classifier_test.
EARLIER = {
    "dit": ("6aac98532bda09bb", 6.2886665, 13.7082922),
    "unet": ("1406d7c80b9b86ab", -3.8394914, -6.6460624),
}


@pytest.mark.parametrize("name", EARLIER)
def test_denoisers_of_an_earlier_version_are_known_again(name):
    params = fresh(name)
    said = program(name)(fingerprints.stirred(params), INPUTS, CONDITION, LABELS)
    structure, *numbers = EARLIER[name]
    assert fingerprints.structure(params) == structure
    found = [fingerprints.number(tree) for tree in (params, said)]
    np.testing.assert_allclose(found, numbers, rtol=1e-4)


FEW = tuple(told[:3] for told in (INPUTS, CONDITION, LABELS))


@functools.cache
def gradient(name, **changes):
    """(what is said, gradient of all params) of three examples."""
    module = make(name, **changes)

    @jax.jit
    def both(params):
        def loss(params):
            said = module.apply({"params": params}, *FEW)
            return jnp.sum(jnp.sin(said)), said

        (_, said), slope = jax.value_and_grad(loss, has_aux=True)(params)
        return said, slope

    return both(trained(name))


@pytest.mark.parametrize(
    ("name", "changes", "tolerance"),
    [
        ("dit", {"remat": True}, 1e-4),
        ("dit", {"remat": True, "dtype": "bfloat16"}, 0.1),
        ("unet", {"remat": True, "dtype": "bfloat16"}, 0.1),
        pytest.param("unet", {"remat": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_computed_again_and_rounded_they_are_the_same(name, changes, tolerance):
    assert fingerprints.structure(shapes(make(name, **changes))[0]) == EARLIER[name][0]
    found = jax.tree.leaves(gradient(name, **changes))
    for a, b in zip(jax.tree.leaves(gradient(name)), found, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())
