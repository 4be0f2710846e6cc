"""Attention, feed-forward and pre-LN blocks against NumPy loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.models import transformer
from functa.models.settings import DTYPES

SMALL = dict(depth=2, heads=3, mlp_width=20, drop_path=0.0, remat=False, dtype="float32")


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def randomize(params, seed=1):
    """Adds noise, because initial norms and biases of one and zero would hide errors."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * noise.normal(size=p.shape).astype(p.dtype), params)


def init(module, x, **mode):
    compiled = jax.jit(functools.partial(module.init, **mode))
    return randomize(compiled(jax.random.key(0), x)["params"])


def make_transformer(**changes):
    return transformer.Transformer(**(SMALL | changes))


@functools.cache
def small_params():
    return init(make_transformer(), np.zeros((1, 5, 12), np.float32), train=False)


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def norm_reference(params, x):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normal * np.asarray(params["scale"]) + np.asarray(params["bias"])


def attention_reference(params, x, heads):
    b, n, width = x.shape
    projected = dense(params["query_key_value"], x)
    query, key, value = np.split(projected, 3, axis=-1)
    size = width // heads
    mixed = np.zeros_like(x, dtype=np.float64)
    for example in range(b):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for to in range(n):
                scores = [
                    query[example, to, part] @ key[example, other, part] / math.sqrt(size)
                    for other in range(n)
                ]
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed[example, to, part] = weights @ value[example, :, part]
    return dense(params["output"], mixed)


def feed_forward_reference(params, x):
    hidden = dense(params["hidden"], x)
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    return dense(params["output"], 0.5 * hidden * (1 + np.tanh(inner)))


def block_reference(params, x, heads):
    x = x + attention_reference(
        params["attention"], norm_reference(params["attention_norm"], x), heads
    )
    return x + feed_forward_reference(
        params["feed_forward"], norm_reference(params["feed_forward_norm"], x)
    )


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_matches_the_reference(x, heads):
    module = transformer.SelfAttention(heads=heads, dtype="float32")
    params = init(module, x)
    output = module.apply({"params": params}, x)
    np.testing.assert_allclose(output, attention_reference(params, x, heads), rtol=1e-4, atol=1e-5)


def test_feed_forward_matches_the_reference(x):
    module = transformer.FeedForward(mlp_width=7, dtype="float32")
    params = init(module, x)
    assert params["hidden"]["kernel"].shape == (12, 7)
    output = module.apply({"params": params}, x)
    np.testing.assert_allclose(output, feed_forward_reference(params, x), rtol=1e-4, atol=1e-5)


def test_transformer_is_its_blocks_and_a_norm(x):
    params = small_params()
    assert sorted(params) == ["block_0", "block_1", "norm"]
    expected = block_reference(params["block_1"], block_reference(params["block_0"], x, 3), 3)
    output = make_transformer().apply({"params": params}, x, train=True)
    expected = norm_reference(params["norm"], expected)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_matrices_are_two_dimensional_kernels():
    leaves = jax.tree_util.tree_leaves_with_path(small_params())
    assert all((path[-1].key == "kernel") == (leaf.ndim == 2) for path, leaf in leaves)


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_width(x, heads):
    with pytest.raises(ValueError, match=f"heads={heads}"):
        transformer.SelfAttention(heads=heads, dtype="float32").init(jax.random.key(0), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_remat_changes_neither_outputs_nor_gradients(x, dtype):
    def output_and_gradients(remat):
        module = make_transformer(drop_path=0.5, dtype=dtype, remat=remat)

        def loss(params, x):
            rngs = {"dropout": jax.random.key(3)}
            output = module.apply({"params": params}, x, train=True, rngs=rngs)
            return jnp.sum(jnp.sin(output)), output

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(small_params(), x)

    tolerance = 1e-5 if dtype == "float32" else 0.02
    plain, remat = (jax.tree.leaves(output_and_gradients(remat)) for remat in (False, True))
    for a, b in zip(plain, remat, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def test_remat_stores_fewer_residuals(x):
    def residual_size(remat):
        module = make_transformer(depth=6, remat=remat)
        params = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)

        def loss(params, x):
            return jnp.sum(module.apply(params, x, train=True))

        residuals = jax.eval_shape(lambda *inputs: jax.vjp(loss, *inputs)[1], params, x)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert residual_size(True) < 0.5 * residual_size(False)


def test_bfloat16_rounds_the_operands_of_matrix_products_only(x):
    module = transformer.FeedForward(mlp_width=7, dtype="bfloat16")
    params = init(module, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    output = module.apply({"params": params}, x)
    assert output.dtype == jnp.float32

    def rounded(values):
        return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)

    hidden = rounded(dense(jax.tree.map(rounded, params["hidden"]), rounded(x)))
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    hidden = rounded(0.5 * hidden * (1 + np.tanh(inner)))
    expected = dense(jax.tree.map(rounded, params["output"]), hidden)
    np.testing.assert_allclose(output, expected, rtol=0.02, atol=0.02)
    assert np.abs(output - feed_forward_reference(params, x)).max() > 1e-4


def test_values_between_blocks_are_float32(x):
    params = init(make_transformer(depth=8), x, train=False)
    exact, rounded = (
        np.asarray(make_transformer(depth=8, dtype=d).apply({"params": params}, x, train=False))
        for d in DTYPES
    )
    assert 1e-4 < np.abs(exact - rounded).max() < 0.1  # of values of order one
    on_grid = rounded == np.asarray(jnp.asarray(rounded, jnp.bfloat16), np.float32)
    assert on_grid.mean() < 0.1


def test_drop_path_drops_branches_of_whole_examples():
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 5, 12)), 64, axis=0).astype(np.float32)
    module, params = make_transformer(drop_path=0.5), {"params": small_params()}
    apply = jax.jit(functools.partial(module.apply, train=True))
    output = np.asarray(apply(params, x, rngs={"dropout": jax.random.key(0)}))
    kinds, counts = np.unique(output.round(3).reshape(64, -1), axis=0, return_counts=True)
    assert len(kinds) == 4  # with and without each of the two branches of the last block
    assert counts.min() > 4
    np.testing.assert_array_equal(
        module.apply(params, x[:1], train=False),
        make_transformer().apply(params, x[:1], train=True),
    )


@pytest.mark.parametrize(("blocks", "expected"), [(1, [0]), (4, [0, 0.1, 0.2, 0.3])])
def test_drop_path_rates_grow_linearly(blocks, expected):
    np.testing.assert_allclose(transformer.drop_path_rates(0.3, blocks), expected)
