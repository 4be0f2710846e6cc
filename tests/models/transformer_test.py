"""Attention, feed-forward and pre-LN blocks against slow NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.models import transformer

SMALL = dict(depth=2, heads=3, mlp_width=20, drop_path=0.0, remat=False, dtype="float32")


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def randomize(params, seed=1):
    """Fresh norms and biases are ones and zeros, which would hide them from a comparison."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * noise.normal(size=p.shape).astype(p.dtype), params)


def init(module, x, **mode):
    return randomize(
        jax.jit(functools.partial(module.init, **mode))(jax.random.key(0), x)["params"]
    )


def blocks(**changes):
    return transformer.Transformer(**(SMALL | changes))


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def slow_norm(params, x):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normal * np.asarray(params["scale"]) + np.asarray(params["bias"])


def slow_attention(params, x, heads):
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


def slow_feed_forward(params, x):
    hidden = dense(params["hidden"], x)
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    return dense(params["output"], 0.5 * hidden * (1 + np.tanh(inner)))


def slow_block(params, x, heads):
    x = x + slow_attention(params["attention"], slow_norm(params["attention_norm"], x), heads)
    return x + slow_feed_forward(params["feed_forward"], slow_norm(params["feed_forward_norm"], x))


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_the_slow_one(x, heads):
    module = transformer.SelfAttention(heads=heads, dtype="float32")
    params = init(module, x)
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, slow_attention(params, x, heads), rtol=1e-4, atol=1e-5)


def test_feed_forward_is_the_slow_one(x):
    module = transformer.FeedForward(mlp_width=7, dtype="float32")
    params = init(module, x)
    assert params["hidden"]["kernel"].shape == (12, 7)
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, slow_feed_forward(params, x), rtol=1e-4, atol=1e-5)


def test_transformer_is_blocks_and_a_norm(x):
    module = blocks()
    params = init(module, x, train=False)
    assert sorted(params) == ["block_0", "block_1", "norm"]
    expected = slow_block(params["block_1"], slow_block(params["block_0"], x, 3), 3)
    expected = slow_norm(params["norm"], expected)
    got = module.apply({"params": params}, x, train=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_positions_are_told_apart_by_their_vectors_alone(x):
    module = blocks(heads=2, mlp_width=16)
    params = init(module, x, train=False)
    order = np.array([3, 0, 4, 1, 2])
    straight = np.asarray(module.apply({"params": params}, x, train=False))
    permuted = np.asarray(module.apply({"params": params}, x[:, order], train=False))
    np.testing.assert_allclose(permuted, straight[:, order], rtol=1e-4, atol=1e-5)


def test_matrices_are_two_dimensional_kernels(x):
    params = init(blocks(depth=1, heads=2), x, train=False)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert all((path[-1].key == "kernel") == (leaf.ndim == 2) for path, leaf in leaves)


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_width(x, heads):
    with pytest.raises(ValueError, match=f"width=12 must divide by heads={heads}"):
        transformer.SelfAttention(heads=heads, dtype="float32").init(jax.random.key(0), x)


@functools.cache
def trained():
    return init(blocks(), np.zeros((1, 5, 12), np.float32), train=False)


def gradients(x, params, **changes):
    """(what is said, gradients of params and x) of blocks that drop branches, one program."""
    module = blocks(**changes)

    @jax.jit
    def both(params, x):
        def loss(params, x):
            said = module.apply(
                {"params": params}, x, train=True, rngs={"dropout": jax.random.key(3)}
            )
            return jnp.sum(jnp.sin(said)), said

        (_, said), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return said, gradient

    return both(params, x)


@pytest.mark.parametrize("dtype", transformer.DTYPES)
def test_what_is_computed_again_is_the_same(x, dtype):
    kept, again = (
        gradients(x, trained(), drop_path=0.5, dtype=dtype, remat=remat) for remat in (False, True)
    )
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def test_what_is_computed_again_has_the_same_params(x):
    def described(remat):
        module = blocks(remat=remat)
        return jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x)

    jax.tree.map(np.testing.assert_array_equal, described(False), described(True))


def test_computing_again_keeps_less(x):
    def kept(remat):
        module = blocks(depth=6, remat=remat)
        shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)

        def loss(params, x):
            return jnp.sum(module.apply(params, x, train=True))

        return sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(loss, *a)[1], shapes, x))
        )

    assert kept(True) < 0.5 * kept(False)


def test_bfloat16_rounds_what_is_multiplied_and_nothing_else(x):
    """As float32 with every input of a product, every matrix and every product rounded."""
    module = transformer.FeedForward(mlp_width=7, dtype="bfloat16")
    params = init(module, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    got = module.apply({"params": params}, x)
    assert got.dtype == jnp.float32

    def rounded(values):
        return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)

    hidden = rounded(dense(jax.tree.map(rounded, params["hidden"]), rounded(x)))
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    hidden = rounded(0.5 * hidden * (1 + np.tanh(inner)))
    expected = dense(jax.tree.map(rounded, params["output"]), hidden)
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(got, rounded(got))  # the last product too
    exact = slow_feed_forward(params, x)
    assert np.abs(got - exact).max() > 1e-4  # it does round


def test_bfloat16_stays_near_float32_through_many_blocks(x):
    params = init(blocks(depth=8), x, train=False)
    exact, rounded = (
        np.asarray(blocks(depth=8, dtype=dtype).apply({"params": params}, x, train=False))
        for dtype in transformer.DTYPES
    )
    assert 1e-4 < np.abs(exact - rounded).max() < 0.1  # of numbers of size one
    # norms, and what blocks hand on, are float32: sums do not fall onto the grid of bfloat16
    assert (rounded != np.asarray(jnp.asarray(rounded, jnp.bfloat16), np.float32)).mean() > 0.9


def test_branches_are_dropped_for_whole_examples():
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 5, 12)), 64, axis=0).astype(np.float32)
    module, params = blocks(drop_path=0.5), trained()
    said = np.asarray(
        jax.jit(functools.partial(module.apply, train=True))(
            {"params": params}, x, rngs={"dropout": jax.random.key(0)}
        )
    )
    kinds, counts = np.unique(said.round(3).reshape(64, -1), axis=0, return_counts=True)
    assert len(kinds) == 4  # with and without each of the two branches of the last block
    assert counts.min() > 4
    quiet = np.asarray(module.apply({"params": params}, x[:1], train=False))
    whole = np.asarray(blocks().apply({"params": params}, x[:1], train=True))
    np.testing.assert_array_equal(quiet, whole)


@pytest.mark.parametrize(("blocks", "expected"), [(1, [0]), (4, [0, 0.1, 0.2, 0.3])])
def test_drop_rates_grow_linearly(blocks, expected):
    np.testing.assert_allclose(transformer.drop_rates(0.3, blocks), expected)
