import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.fields import siren


@pytest.mark.parametrize(
    ("fast", "slow"), [(siren.sine, np.sin), (siren.cosine, np.cos)], ids=["sine", "cosine"]
)
def test_sine_and_cosine_have_errors_below_2e_7_up_to_60(fast, slow):
    x = np.linspace(-60, 60, 400_001).astype(np.float32)
    error = np.abs(np.asarray(jax.jit(fast)(x)) - slow(x.astype(np.float64)))
    assert error.max() < 2e-7


def test_derivatives_of_the_sine():
    x = jnp.linspace(-9.0, 9.0, 101)
    first = jax.vmap(jax.grad(siren.sine))(x)
    second = jax.vmap(jax.grad(jax.grad(siren.sine)))(x)
    third = jax.vmap(jax.grad(jax.grad(jax.grad(siren.sine))))(x)
    np.testing.assert_allclose(first, np.cos(x), atol=5e-7)
    np.testing.assert_allclose(second, -np.sin(x), atol=5e-7)
    np.testing.assert_allclose(third, -np.cos(x), atol=5e-7)


def slow_siren(params, inputs, shifts, scales, w0):
    """Reference: sin(w0 (W' h + b' + s')) as in the papers, one point and one layer at a time."""
    out = []
    for point in inputs:
        h = np.asarray(point, np.float64)
        for layer, (weight, bias) in enumerate(
            zip(params["weights"], params["biases"], strict=True)
        ):
            weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
            if layer == len(params["weights"]) - 1:
                out.append(h @ weight / 10 + bias + 0.5)
                break
            inside = (h @ (weight / w0) + bias / w0) * (1 + scales[layer]) + shifts[layer] / w0
            h = np.sin(w0 * inside)
    return np.array(out)


@pytest.mark.parametrize("w0", [1.0, 30.0])
def test_apply_matches_the_papers(w0):
    key = jax.random.key(0)
    params = siren.init(key, inputs=2, outputs=3, width=5, depth=4, w0=w0)
    params["biases"][-1] = jnp.float32([0.1, -0.2, 0.3])
    inputs = jax.random.uniform(key, (7, 2))
    shifts = [jax.random.normal(jax.random.key(layer), (5,)) for layer in range(3)]
    scales = [0.1 * shift for shift in shifts]
    fast = siren.apply(params, inputs, shifts, scales)
    slow = slow_siren(params, inputs, shifts, scales, w0)
    np.testing.assert_allclose(fast, slow, atol=2e-6)


def test_inputs_without_batch_axis_are_shared():
    params = siren.init(jax.random.key(0), inputs=2, outputs=1, width=4, depth=3, w0=10.0)
    inputs = jax.random.uniform(jax.random.key(1), (6, 2))
    shifts = [jax.random.normal(jax.random.key(layer), (3, 1, 4)) for layer in range(2)]
    together = siren.apply(params, inputs, shifts, None)
    assert together.shape == (3, 6, 1)
    for example in range(3):
        alone = siren.apply(params, inputs, [shift[example, 0] for shift in shifts], None)
        np.testing.assert_allclose(together[example], alone, atol=1e-6)


def test_initial_weights_have_the_documented_ranges():
    params = siren.init(jax.random.key(0), inputs=2, outputs=3, width=400, depth=4, w0=30.0)
    for weight, bound in zip(params["weights"], [30 / 2] + [(6 / 400) ** 0.5] * 3, strict=True):
        assert 0.95 * bound < float(jnp.abs(weight).max()) <= bound
