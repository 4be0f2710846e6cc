"""Classifiers: shapes, parts against references, dropout, and layer-wise learning rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from functa.models import classifier

LARGE = {"remat": False, "dtype": "float32", "drop_path": 0.0, "dropout": 0.3}
SMALL = {
    "mlp": {"name": "mlp", "width": 16, "depth": 2, "dropout": 0.3},
    "transformer": {
        "name": "transformer",
        **{"width": 12, "depth": 2, "heads": 2, "mlp_width": 20, "patch": 1},
        **LARGE,
    },
    "convnext": {"name": "convnext", "widths": (8, 12), "depths": (1, 2), **LARGE},
}


def random_latents(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_network(name, **changes):
    return classifier.make_classifier(num_classes=5, **(SMALL[name] | changes))


def make_network_and_params(name, latents, **changes):
    """Random parameters: initial ones make the logits zero, and take long to compile."""
    network = make_network(name, **changes)
    init = functools.partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), latents)["params"]
    random = np.random.default_rng(1)

    def sample(path, leaf):
        values = random.normal(size=leaf.shape).astype(leaf.dtype)
        if path[-1].key == "kernel":
            return values / np.sqrt(np.prod(leaf.shape[:-1], dtype=np.float32))
        return 0.1 * values + np.float32(path[-1].key == "scale")

    return network, jax.tree_util.tree_map_with_path(sample, shapes)


def apply(network, params, latents):
    return jax.jit(lambda *a: network.apply({"params": a[0]}, a[1], train=False))(params, latents)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("grid", [(1, 1, 16), (7, 5, 3)])
def test_logits_of_an_example_do_not_depend_on_the_batch(name, grid):
    latents = random_latents((3, *grid))
    network, params = make_network_and_params(name, latents)
    logits = apply(network, params, latents)
    assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)
    reordered = apply(network, params, latents[[2, 1, 1]])
    np.testing.assert_allclose(reordered, logits[np.array([2, 1, 1])], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(logits[0] - logits[1])).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_initial_logits_are_zero(name):
    init = jax.jit(functools.partial(make_network(name).init_with_output, train=False))
    logits, _ = init(jax.random.key(0), random_latents((3, 2, 2, 8)))
    np.testing.assert_array_equal(logits, np.zeros((3, 5)))


@pytest.mark.parametrize("name", SMALL)
def test_logits_depend_on_every_cell_and_its_position(name):
    latents = random_latents((1, 3, 3, 4))
    network, params = make_network_and_params(name, latents)
    logits = jax.jit(lambda z: network.apply({"params": params}, z, train=False))
    gradient = jax.jit(jax.grad(lambda z: logits(z)[0, 0]))(latents)
    assert np.abs(np.asarray(gradient)).max(axis=(0, 3)).min() > 1e-4
    assert np.abs(np.asarray(logits(latents) - logits(latents[:, ::-1]))).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mlp", "dropout"),
        ("transformer", "dropout"),
        ("transformer", "drop_path"),
        ("convnext", "dropout"),
    ],
)
def test_dropout_is_a_function_of_the_key_and_off_in_evaluation(name, key):
    latents = random_latents((8, 2, 2, 4))
    off = {key: 0.0 for key in ("dropout", "drop_path") if key in SMALL[name]}
    network, params = make_network_and_params(name, latents, **(off | {key: 0.5}))
    variables = {"params": params}

    @jax.jit
    def logits(key):
        return network.apply(variables, latents, train=True, rngs={"dropout": key})

    first, again, other = (np.asarray(logits(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    without = make_network(name, **off)
    np.testing.assert_array_equal(
        jax.jit(lambda: network.apply(variables, latents, train=False))(),
        jax.jit(lambda: without.apply(variables, latents, train=True, rngs={}))(),
    )


def test_convnext_drop_path_drops_the_last_branch_of_whole_examples():
    latents = np.repeat(random_latents((1, 4, 4, 3)), 64, axis=0)
    settings = {"widths": (8,), "depths": (2,), "drop_path": 0.5, "dropout": 0.0}
    network, params = make_network_and_params("convnext", latents, **settings)
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(network.apply, static_argnames="train")
    logits = np.asarray(apply({"params": params}, latents, train=True, rngs=rngs))
    # The first block is never dropped.
    assert len(np.unique(np.round(logits, 3), axis=0)) == 2
    output = params["block_0_1"]["feed_forward"]["output"]
    params["block_0_1"]["feed_forward"]["output"] = jax.tree.map(jnp.zeros_like, output)
    dropped = np.asarray(apply({"params": params}, latents[:1], train=False))
    assert 16 < np.sum(np.abs(logits - dropped).max(axis=1) < 1e-4) < 48


def test_depthwise_convolution_matches_the_grouped_one():
    x = random_latents((2, 5, 4, 6))
    module = classifier.Depthwise3x3()
    params = module.init(jax.random.key(0), x)["params"]
    params["bias"] = random_latents((6,), seed=1)
    grouped = nn.Conv(6, (3, 3), feature_group_count=6)
    grouped_params = {"kernel": params["kernel"][:, :, None], "bias": params["bias"]}
    expected = grouped.apply({"params": grouped_params}, x)
    output = module.apply({"params": params}, x)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_convnext_halves_the_grid_between_stages():
    latents = random_latents((1, 7, 7, 3))
    network, params = make_network_and_params("convnext", latents)
    shapes = {}

    def record_shape(call, args, kwargs, context):
        if isinstance(context.module, classifier.ConvNextBlock):
            shapes[context.module.name] = args[0].shape[1:]
        return call(*args, **kwargs)

    with nn.intercept_methods(record_shape):
        jax.eval_shape(lambda: network.apply({"params": params}, latents, train=False))
    assert shapes == {"block_0_0": (7, 7, 8), "block_1_0": (4, 4, 12), "block_1_1": (4, 4, 12)}


def test_patches_are_tokens_of_their_cells_in_row_major_order():
    """The 2x2 patches of [4, 6, 3] are the cells of a grid [2, 3, 12]."""
    latents = random_latents((2, 4, 6, 3))
    network, params = make_network_and_params("transformer", latents, patch=2)
    cells = np.zeros((2, 2, 3, 12), np.float32)
    for row in range(2):
        for column in range(3):
            patch = latents[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            cells[:, row, column] = patch.reshape(2, 12)
    expected = apply(make_network("transformer"), params, cells)
    logits = apply(network, params, latents)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert params["position"].shape == (1, 6, 12)
    with pytest.raises(ValueError, match="patch=2.*4x3"):
        make_network_and_params("transformer", random_latents((1, 4, 3, 2)), patch=2)


@pytest.mark.parametrize(
    ("name", "changes", "tolerance"),
    [
        ("transformer", {"dtype": "bfloat16"}, 0.1),
        ("convnext", {"dtype": "bfloat16"}, 0.1),
        ("convnext", {"remat": True}, 1e-4),
    ],
)
def test_dtype_and_remat_keep_params_logits_and_gradients(name, changes, tolerance):
    latents = random_latents((3, 4, 4, 3))
    network, params = make_network_and_params(name, latents)
    changed, same_params = make_network_and_params(name, latents, **changes)
    jax.tree.map(np.testing.assert_array_equal, params, same_params)

    def logits_and_gradient(network):
        def loss(params):
            logits = network.apply({"params": params}, latents, train=False)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(params))

    pairs = zip(logits_and_gradient(network), logits_and_gradient(changed), strict=True)
    for a, b in pairs:
        assert b.dtype == jnp.float32
        atol = 0.5 * tolerance * np.abs(a).max() + 0.01 * tolerance
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("name", SMALL)
def test_weight_decay_applies_to_kernels_only(name):
    _, params = make_network_and_params(name, random_latents((1, 2, 2, 4)))
    leaf_names = {True: set(), False: set()}
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(classifier.decay_mask(params)):
        leaf_names[is_decayed].add(path[-1].key)
    embeddings = {"cls", "position"} if name == "transformer" else set()
    assert leaf_names == {True: {"kernel"}, False: {"bias", "scale"} | embeddings}


def unique_scales(scales):
    return {name: set(jax.tree.leaves(tree)) for name, tree in scales.items()}


def test_learning_rates_decay_over_the_blocks_of_a_transformer():
    _, params = make_network_and_params("transformer", random_latents((1, 2, 2, 4)), depth=3)
    scales = classifier.layer_lr_scales(params, decay=0.5)
    assert jax.tree.structure(scales) == jax.tree.structure(params)
    blocks = {"block_0": {0.125}, "block_1": {0.25}, "block_2": {0.5}, "norm": {1.0}}
    assert unique_scales(scales.pop("transformer")) == blocks
    embeddings = dict.fromkeys(("cls", "embedding", "position"), {0.0625})
    assert unique_scales(scales) == embeddings | {"head": {1.0}}


def test_learning_rates_decay_over_the_stages_of_a_convnext():
    latents = random_latents((1, 4, 4, 3))
    _, params = make_network_and_params("convnext", latents, depths=(2, 1))
    assert unique_scales(classifier.layer_lr_scales(params, decay=0.5)) == {
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


def test_blocks_are_ordered_by_number():
    params = {f"block_{k}": {"kernel": np.zeros(1)} for k in range(11)}
    scales = classifier.layer_lr_scales(params, decay=0.9)
    in_order = [scales[f"block_{k}"]["kernel"] for k in range(11)]
    assert in_order == sorted(in_order)


def test_layer_decay_needs_blocks():
    _, params = make_network_and_params("mlp", random_latents((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="layer_decay"):
        classifier.layer_lr_scales(params, decay=0.5)
