"""Classifiers: their shapes, their parts against references, and what goes wrong when misconfigured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from functa.configs import common
from functa.models import classifier
from tests.support import fingerprints

SMALL = {
    "mlp": {"name": "mlp", "width": 16, "depth": 2, "dropout": 0.3},
    "transformer": {
        "name": "transformer",
        "width": 12,
        "depth": 2,
        "heads": 2,
        "mlp_width": 20,
        "patch": 1,
        "drop_path": 0.0,
        "dropout": 0.3,
        "remat": False,
        "dtype": "float32",
    },
    "convnext": {
        "name": "convnext",
        "widths": (8, 12),
        "depths": (1, 2),
        "drop_path": 0.3,
        "dropout": 0.3,
        "remat": False,
        "dtype": "float32",
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
        ("transformer", "drop_path"),
        ("convnext", "dropout"),
        ("convnext", "drop_path"),
    ],
)
def test_dropout_is_a_function_of_the_key_and_off_in_evaluation(name, key):
    latents = latents_of((8, 2, 2, 4))
    off = {key: 0.0 for key in ("dropout", "drop_path") if key in SMALL[name]}
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
        ("transformer", {"patch": 0}, "patch=0 must be at least 1"),
        ("transformer", {"drop_path": 1.0}, r"drop_path=1.0 must be in \[0, 1\)"),
        ("transformer", {"dtype": "float16"}, "dtype='float16': known are float32, bfloat16"),
        ("convnext", {"dtype": "half"}, "dtype='half': known are float32, bfloat16"),
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


# Of the version before patch, drop_path, remat and dtype: names and shapes of params, their numbers from key 0, and
# of stirred ones what is said in evaluation and, with dropout from the key 1, in training.
EARLIER = {
    "mlp": ("ea4f5256202cac21", 4.8031936, 0.13469765, -0.09323225),
    "transformer": ("e05aaa1eaaffbe53", 4.6818529, -0.6841535, -0.3069931),
    "convnext": ("d39df6fea71e9977", -3.8747030, 1.5793616, 2.4533258),
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mlp", {}),
        ("transformer", {}),
        ("transformer", {"remat": True}),
        ("convnext", {}),
        ("convnext", {"remat": True}),
    ],
)
def test_models_of_an_earlier_version_are_known_again(name, changes):
    module = classifier.make_model(num_classes=5, **(SMALL[name] | changes))
    latents = latents_of((3, 4, 4, 3))
    init = jax.jit(functools.partial(module.init, train=False))
    params = init(jax.random.key(0), latents)["params"]
    stirred = {"params": fingerprints.stirred(params)}
    said = [
        jax.jit(functools.partial(module.apply, train=train))(
            stirred, latents, rngs={"dropout": jax.random.key(1)}
        )
        for train in (False, True)
    ]
    structure, *numbers = EARLIER[name]
    assert fingerprints.structure(params) == structure
    np.testing.assert_allclose(
        [fingerprints.number(tree) for tree in (params, *said)], numbers, rtol=1e-4, atol=1e-5
    )


def test_a_patch_of_cells_is_one_token():
    """Patches of 2 x 2 cells of [4, 6, 3] are what cells of [2, 3, 12] would be, put together by hand."""
    latents = latents_of((2, 4, 6, 3))
    module, params = build("transformer", latents, patch=2)
    merged = np.stack(
        [
            [
                latents[:, row : row + 2, column : column + 2].reshape(2, 12)
                for column in range(0, 6, 2)
            ]
            for row in range(0, 4, 2)
        ]
    ).transpose(2, 0, 1, 3)
    of_cells = classifier.make_model(num_classes=5, **SMALL["transformer"])
    np.testing.assert_allclose(
        apply(module, params, latents), apply(of_cells, params, merged), rtol=1e-5, atol=1e-6
    )
    assert params["position"].shape == (1, 6, 12)


def test_a_patch_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(ValueError, match="patch=2 must divide the latent grid 4x3"):
        build("transformer", latents_of((1, 4, 3, 2)), patch=2)


@pytest.mark.parametrize("name", ["transformer", "convnext"])
def test_bfloat16_has_the_same_params_and_float32_logits(name):
    latents = latents_of((3, 4, 4, 3))
    module, params = build(name, latents)
    rounding, same = build(name, latents, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, params, same)
    exact, rounded = apply(module, params, latents), apply(rounding, params, latents)
    assert rounded.dtype == jnp.float32
    assert 1e-5 < np.abs(np.asarray(exact - rounded)).max() < 0.1

    def gradient(module):
        def loss(params):
            return jnp.sum(jnp.sin(module.apply({"params": params}, latents, train=False)))

        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(*(jax.tree.leaves(gradient(one)) for one in (module, rounding)), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.05 * np.abs(a).max() + 1e-3)


def test_layer_rates_of_a_transformer():
    _, params = build("transformer", latents_of((1, 2, 2, 4)), depth=3)
    rates = classifier.layer_rates(params, decay=0.5)
    assert jax.tree.structure(rates) == jax.tree.structure(params)
    blocks = rates.pop("transformer")
    assert set(jax.tree.leaves(blocks.pop("norm"))) == {1.0}
    assert set(jax.tree.leaves(rates.pop("head"))) == {1.0}
    assert {name: set(jax.tree.leaves(tree)) for name, tree in blocks.items()} == {
        "block_0": {0.125},
        "block_1": {0.25},
        "block_2": {0.5},
    }
    assert sorted(rates) == ["cls", "embedding", "position"]
    assert set(jax.tree.leaves(rates)) == {0.0625}


def test_layer_rates_of_a_convnext_go_on_over_its_resolutions():
    _, params = build("convnext", latents_of((1, 4, 4, 3)), depths=(2, 1))
    rates = classifier.layer_rates(params, decay=0.5)
    assert {name: set(jax.tree.leaves(tree)) for name, tree in rates.items()} == {
        "embedding": {0.0625},
        "embedding_norm": {0.0625},
        "block_0_0": {0.125},
        "block_0_1": {0.25},
        "downsample_norm_1": {0.5},
        "downsample_1": {0.5},
        "block_1_0": {0.5},
        "norm": {1.0},
        "head": {1.0},
    }


def test_a_tenth_block_is_above_the_ninth():
    params = {f"block_{k}": {"kernel": np.zeros(1)} for k in range(11)} | {"head": np.zeros(1)}
    rates = classifier.layer_rates(params, decay=0.9)
    in_order = [rates[f"block_{k}"]["kernel"] for k in range(11)]
    assert in_order == sorted(in_order)


def test_a_model_without_blocks_has_no_layer_rates():
    _, params = build("mlp", latents_of((1, 2, 2, 4)))
    with pytest.raises(ValueError, match=r"layer_decay=0.5 wants a model of blocks"):
        classifier.layer_rates(params, decay=0.5)
