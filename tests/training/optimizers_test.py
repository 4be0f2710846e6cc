"""Optimizers: directions, schedules, weight decay, clipping and settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from functa.training import optimizers

SETTINGS = dict(
    learning_rate=0.1,
    schedule="cosine",
    warmup_steps=2,
    end_fraction=0.1,
    weight_decay=0.0,
    clip_norm=0.0,
    steps=10,
)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_decreases_a_quadratic(name):
    optimizer = optimizers.make(name=name, **(SETTINGS | {"steps": 40})).transformation
    params = {"matrix": jnp.full((3, 4), 2.0), "vector": jnp.full((4,), 2.0)}
    state = optimizer.init(params)

    def loss(params):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = float(loss(params))
    for _ in range(40):
        params, state = step(params, state)
    assert float(loss(params)) < 0.7 * before


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8), (1, 5)])
def test_orthogonalize_equals_newton_schulz_steps_on_the_matrix(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix *= np.logspace(0, -2, shape[1], dtype=np.float32)
    expected = np.float64(matrix) / np.linalg.norm(matrix)
    for _ in range(5):
        gram = expected @ expected.T
        expected = (3.4445 * np.eye(len(gram)) - 4.7750 * gram + 2.0315 * gram @ gram) @ expected
    np.testing.assert_allclose(optimizers.orthogonalize(matrix), expected, atol=1e-3)


def test_orthogonalize_of_zeros_is_zero():
    np.testing.assert_array_equal(optimizers.orthogonalize(jnp.zeros((4, 9))), 0)


@pytest.mark.parametrize("size", [1e30, 1e-3])
def test_orthogonalize_does_not_depend_on_scale(size):
    matrix = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    scaled = optimizers.orthogonalize(matrix * np.float32(size))
    np.testing.assert_allclose(scaled, optimizers.orthogonalize(matrix), atol=1e-5)


def test_orthogonalize_suppresses_near_zero_gradients():
    matrix = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    assert np.abs(optimizers.orthogonalize(matrix * np.float32(1e-15))).max() < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_orthogonalize_keeps_nonfinite_values(bad):
    matrix = np.ones((4, 9), np.float32)
    matrix[1, 2] = bad
    assert not np.isfinite(optimizers.orthogonalize(matrix)).all()


def test_orthogonalize_does_not_amplify_rounding_errors():
    """The matrix has rank 1: all other eigenvalues of its Gram matrix are rounding errors."""
    rng = np.random.default_rng(0)
    matrix = np.float32(1e6 * np.outer(rng.normal(size=64), rng.normal(size=900)))
    sizes = np.linalg.svd(np.asarray(optimizers.orthogonalize(matrix)), compute_uv=False)
    assert 0.6 < sizes[0] < 1.3
    assert sizes[1] < 0.3


def test_muon_equals_optax_muon_after_many_steps():
    """The bias corrections of the momentum differ only in early steps."""
    rng = np.random.default_rng(1)
    params = {"matrix": jnp.zeros((5, 12)), "vector": jnp.zeros((3,))}
    ours = optimizers.make(name="muon", **SETTINGS).transformation
    theirs = contrib.muon(optimizers.make(name="muon", **SETTINGS).learning_rate)
    our_state, their_state = ours.init(params), theirs.init(params)
    for _ in range(60):
        gradient = jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), params)
        our_updates, our_state = ours.update(gradient, our_state, params)
        their_updates, their_state = theirs.update(gradient, their_state, params)
    for name, expected in their_updates.items():
        np.testing.assert_allclose(our_updates[name], expected, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.05, 0.1, 0.1, 0.1, 0.1]),
        ("cosine", [0.05, 0.1, 0.1, 0.055, 0.01]),
        ("exponential", [0.05, 0.1, 0.1, 0.1 * 0.1**0.5, 0.01]),
    ],
)
def test_schedules(schedule, expected):
    rate = optimizers.make_schedule(
        0.1, schedule=schedule, warmup_steps=2, end_fraction=0.1, steps=10
    )
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 6, 10)], expected, rtol=1e-5)


def test_clip_norm_scales_the_gradient():
    # Adam's update does not depend on the scale of the gradient, but its first moment does.
    optimizer = optimizers.make(name="adam", **(SETTINGS | {"clip_norm": 1.0})).transformation
    params = {"a": jnp.zeros((2,))}
    _, state = optimizer.update({"a": jnp.float32([30.0, 40.0])}, optimizer.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    np.testing.assert_allclose(moments[0], 0.1 * np.float32([0.6, 0.8]), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_weight_decay_uses_the_mask(name):
    params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones((2,))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = optimizers.make(
        name=name,
        **(SETTINGS | {"weight_decay": 0.5}),
        decay_mask=lambda params: {"matrix": True, "vector": False},
    ).transformation
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    expected = -0.05 if name == "lamb" else -0.05 * 0.5  # LAMB's update has the norm of the weights
    np.testing.assert_allclose(updates["matrix"], expected, rtol=1e-5)
    np.testing.assert_array_equal(updates["vector"], 0)


def test_scaled_updates_equal_other_learning_rates():
    """Including weight decay."""
    params = {"slow": jnp.ones((2,)), "fast": jnp.ones((2,))}
    gradient = {"slow": jnp.float32([1, 2]), "fast": jnp.float32([1, 2])}

    def updates(transformation):
        return transformation.update(gradient, transformation.init(params), params)[0]

    settings = SETTINGS | {"weight_decay": 0.5}
    whole = optimizers.make(name="adamw", **settings).transformation
    quarter = optimizers.make(name="adamw", **(settings | {"learning_rate": 0.025})).transformation
    scaled = optimizers.scale_updates(lambda params: {"slow": 0.25, "fast": 1.0})
    result = updates(optax.chain(whole, scaled))
    np.testing.assert_allclose(result["slow"], updates(quarter)["slow"], rtol=1e-6)
    np.testing.assert_array_equal(result["fast"], updates(whole)["fast"])


def test_clip_params():
    clip = optimizers.clip_params(-1.0, 2.0)
    params = jnp.float32([-0.9, 0.0, 1.9])
    updates, _ = clip.update(jnp.float32([-5.0, 0.5, 5.0]), clip.init(params), params)
    np.testing.assert_allclose(params + updates, [-1.0, 0.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgdd"}, "optimizer.name='sgdd'"),
        ({"name": "adam", "weight_decay": 0.1}, "weight_decay=0.1"),
        ({"name": "adam", "schedule": "linear"}, "optimizer.schedule='linear'"),
        ({"name": "adam", "warmup_steps": 10}, "warmup_steps=10"),
        ({"name": "adam", "learning_rate": 0.0}, "learning_rate=0.0"),
        ({"name": "adam", "clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"name": "adamw", "weight_decay": float("nan")}, "weight_decay=nan"),
    ],
)
def test_invalid_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make(**({"name": "adam"} | SETTINGS | changes))
