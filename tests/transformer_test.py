"""Attention, feed-forward and pre-LN blocks against slow NumPy."""

import math

import jax
import numpy as np
import pytest

from functa import transformer


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def randomize(params, seed=1):
    """Fresh norms and biases are ones and zeros, which would hide them from a comparison."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * noise.normal(size=p.shape).astype(p.dtype), params)


def init(module, x):
    return randomize(jax.jit(module.init)(jax.random.key(0), x)["params"])


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
    module = transformer.SelfAttention(heads=heads)
    params = init(module, x)
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, slow_attention(params, x, heads), rtol=1e-4, atol=1e-5)


def test_feed_forward_is_the_slow_one(x):
    module = transformer.FeedForward(mlp_width=7)
    params = init(module, x)
    assert params["hidden"]["kernel"].shape == (12, 7)
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, slow_feed_forward(params, x), rtol=1e-4, atol=1e-5)


def test_transformer_is_blocks_and_a_norm(x):
    module = transformer.Transformer(depth=2, heads=3, mlp_width=20)
    params = init(module, x)
    assert sorted(params) == ["block_0", "block_1", "norm"]
    expected = slow_block(params["block_1"], slow_block(params["block_0"], x, 3), 3)
    expected = slow_norm(params["norm"], expected)
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)


def test_positions_are_told_apart_by_their_vectors_alone(x):
    module = transformer.Transformer(depth=2, heads=2, mlp_width=16)
    params = init(module, x)
    order = np.array([3, 0, 4, 1, 2])
    straight = np.asarray(module.apply({"params": params}, x))
    permuted = np.asarray(module.apply({"params": params}, x[:, order]))
    np.testing.assert_allclose(permuted, straight[:, order], rtol=1e-4, atol=1e-5)


def test_matrices_are_two_dimensional_kernels(x):
    params = init(transformer.Transformer(depth=1, heads=2, mlp_width=16), x)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert all((path[-1].key == "kernel") == (leaf.ndim == 2) for path, leaf in leaves)


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_width(x, heads):
    with pytest.raises(ValueError, match=f"width=12 must divide by heads={heads}"):
        transformer.SelfAttention(heads=heads).init(jax.random.key(0), x)
