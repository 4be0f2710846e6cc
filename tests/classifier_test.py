"""Classifiers: their shapes, their parts against references, and what goes wrong when misconfigured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import common
from functa import classifier

SMALL = {
    "mlp": {"name": "mlp", "width": 16, "depth": 2, "dropout": 0.3},
    "transformer": {
        "name": "transformer",
        "width": 12,
        "depth": 2,
        "heads": 2,
        "mlp_width": 20,
        "dropout": 0.3,
    },
    "convnext": {
        "name": "convnext",
        "widths": (8, 12),
        "depths": (1, 2),
        "drop_path": 0.3,
        "dropout": 0.3,
    },
}


def latents_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(name, latents, **changes):
    """(module, params): no layer at zero, as the logits' is at first, which would hide what is before it.

    Drawn here, as the model's own draws compile for longer than all that is done with them."""
    module = classifier.make_model(num_classes=5, **(SMALL[name] | changes))
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), latents)["params"]
    random = np.random.default_rng(1)

    def draw(path, leaf):
        numbers = random.normal(size=leaf.shape).astype(leaf.dtype)
        if path[-1].key == "kernel":
            return numbers / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        return 0.1 * numbers + np.float32(path[-1].key == "scale")

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


def apply(module, params, latents):
    return jax.jit(lambda *a: module.apply({"params": a[0]}, a[1], train=False))(params, latents)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("grid", [(1, 1, 16), (2, 2, 8), (7, 5, 3)])
def test_logits_of_every_grid(name, grid):
    latents = latents_of((3, *grid))
    module, params = build(name, latents)
    logits = apply(module, params, latents)
    assert logits.shape == (3, 5)
    assert logits.dtype == jnp.float32
    # each example by itself
    among_others = apply(module, params, latents[[2, 1, 1]])
    np.testing.assert_allclose(among_others[1], logits[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(among_others[2], logits[1], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(logits[0] - logits[1])).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_training_starts_at_uniform_odds(name):
    module = classifier.make_model(num_classes=5, **SMALL[name])
    latents = latents_of((3, 2, 2, 8))
    init = jax.jit(functools.partial(module.init_with_output, train=False))
    logits, _ = init(jax.random.key(0), latents)
    np.testing.assert_array_equal(logits, np.zeros((3, 5)))


@pytest.mark.parametrize("name", SMALL)
def test_every_cell_and_its_place_count(name):
    latents = latents_of((1, 3, 3, 4))
    module, params = build(name, latents)
    said = jax.jit(lambda z: module.apply({"params": params}, z, train=False))
    gradient = jax.jit(jax.grad(lambda z: said(z)[0, 0]))(latents)
    assert np.abs(np.asarray(gradient)).max(axis=(0, 3)).min() > 1e-4
    logits, flipped = said(latents), said(latents[:, ::-1])
    assert np.abs(np.asarray(logits - flipped)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mlp", "dropout"),
        ("transformer", "dropout"),
        ("convnext", "dropout"),
        ("convnext", "drop_path"),
    ],
)
def test_dropout_is_a_function_of_the_key_and_off_in_evaluation(name, key):
    latents = latents_of((8, 2, 2, 4))
    off = {"dropout": 0.0} | ({"drop_path": 0.0} if name == "convnext" else {})
    module, params = build(name, latents, **(off | {key: 0.5}))

    @jax.jit
    def logits(key):
        rngs = {"dropout": key}
        return module.apply({"params": params}, latents, train=True, rngs=rngs)

    first, again, other = (np.asarray(logits(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    without, _ = build(name, latents, **off)
    np.testing.assert_array_equal(
        jax.jit(lambda: module.apply({"params": params}, latents, train=False))(),
        jax.jit(lambda: without.apply({"params": params}, latents, train=True, rngs={}))(),
    )


def test_drop_path_drops_the_branch_of_whole_examples():
    latents = np.repeat(latents_of((1, 4, 4, 3)), 64, axis=0)  # equal examples
    settings = {"widths": (8,), "depths": (2,), "drop_path": 0.5, "dropout": 0.0}
    module, params = build("convnext", latents, **settings)
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(module.apply, static_argnames="train")
    logits = np.asarray(apply({"params": params}, latents, train=True, rngs=rngs))
    # the first block is never dropped, so examples differ by the last one alone
    assert len(np.unique(np.round(logits, 3), axis=0)) == 2
    # without its last block a network is what it is with that block's output at zero
    output = params["block_0_1"]["feed_forward"]["output"]
    params["block_0_1"]["feed_forward"]["output"] = jax.tree.map(jnp.zeros_like, output)
    dropped = np.asarray(apply({"params": params}, latents[:1], train=False))
    is_dropped = np.abs(logits - dropped).max(axis=1) < 1e-4
    assert 16 < is_dropped.sum() < 48


def test_depthwise_is_the_grouped_convolution():
    x = latents_of((2, 5, 4, 6))
    module = classifier.Depthwise3x3()
    params = module.init(jax.random.key(0), x)["params"]
    params["bias"] = latents_of((6,), seed=1)
    conv = nn.Conv(6, (3, 3), feature_group_count=6)
    conv_params = {"kernel": params["kernel"][:, :, None], "bias": params["bias"]}
    np.testing.assert_allclose(
        module.apply({"params": params}, x),
        conv.apply({"params": conv_params}, x),
        rtol=1e-4,
        atol=1e-5,
    )


def test_convnext_halves_the_grid_between_stages():
    latents = latents_of((1, 7, 7, 3))
    module, params = build("convnext", latents)
    shapes = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, classifier.ConvNextBlock):
            shapes[context.module.name] = args[0].shape[1:]
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        apply(module, params, latents)
    assert shapes == {"block_0_0": (7, 7, 8), "block_1_0": (4, 4, 12), "block_1_1": (4, 4, 12)}


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_spares_biases_norms_cls_and_positions(name):
    _, params = build(name, latents_of((1, 2, 2, 4)))
    mask = classifier.decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    decayed = {True: set(), False: set()}
    for path, value in jax.tree_util.tree_leaves_with_path(mask):
        decayed[value].add(path[-1].key)
    extra = {"cls", "position"} if name == "transformer" else set()
    assert decayed == {True: {"kernel"}, False: {"bias", "scale"} | extra}


@pytest.mark.parametrize("make", [common.mlp, common.transformer, common.convnext])
def test_the_configs_build(make):
    model = classifier.make_model(num_classes=10, **make())
    assert type(model) is classifier.MODELS[make().name]


@pytest.mark.parametrize("name", SMALL)
def test_a_misspelt_or_missing_key_is_a_type_error(name):
    with pytest.raises(TypeError, match="droput"):
        classifier.make_model(num_classes=5, **SMALL[name], droput=0.1)
    rest = {key: value for key, value in SMALL[name].items() if key != "dropout"}
    with pytest.raises(TypeError, match="dropout"):
        classifier.make_model(num_classes=5, **rest)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mlp", {"depth": 0, "dropout": 1.0}, r"depth=0 .* at least 1; dropout=1.0 .* \[0, 1\)"),
        ("transformer", {"heads": 5}, "width=12 must divide by heads=5"),
        ("transformer", {"heads": 0}, "heads=0 must be at least 1"),
        ("convnext", {"widths": (8,)}, r"widths=\(8,\) and depths=\(1, 2\) need one entry"),
        ("convnext", {"widths": (), "depths": ()}, "need one entry"),
        ("convnext", {"depths": (1, 0)}, "whole numbers of at least 1"),
        ("convnext", {"widths": (8.5, 12)}, "whole numbers of at least 1"),
        ("convnext", {"drop_path": -0.1}, r"drop_path=-0.1 must be in \[0, 1\)"),
        (
            "mlp",
            {"name": "resnet"},
            "unknown classifier 'resnet'; known are mlp, transformer, convnext",
        ),
    ],
)
def test_impossible_values_are_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        classifier.make_model(num_classes=5, **(SMALL[name] | changes))


def test_num_classes_must_be_positive():
    with pytest.raises(ValueError, match="num_classes=0"):
        classifier.make_model(num_classes=0, **SMALL["mlp"])
