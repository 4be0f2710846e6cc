"""Classifier-free guidance: its value, its interval and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion.guidance import guide, make_guidance

SHAPE = (1, 1, 2)
INTERVAL = (0.3, 2.0)


def denoise(x, sigma, labels):
    """A denoiser whose output shows the label."""
    return x * 0.1 + labels.astype(jnp.float32)[:, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_extrapolates_inside_the_interval(scale):
    x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    sigma = jnp.asarray([0.1, 0.3, 2.0, 2.1], jnp.float32)
    labels = jnp.asarray([1, 2, 3, 4], jnp.int32)

    def guided(scale):
        return guide(denoise, null_class=7, scale=scale, interval=INTERVAL)(x, sigma, labels)

    conditional, unconditional = denoise(x, sigma, labels), denoise(x, sigma, labels * 0 + 7)
    expected = np.where(
        np.array([0, 1, 1, 0])[:, None, None, None],
        unconditional + scale * (conditional - unconditional),
        conditional,
    )
    for value in (guided(scale), jax.jit(guided)(scale)):  # Python float, traced scalar
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "sigma", "expected"), [(2.0, 1.0, [3, 7]), (2.0, 5.0, [3]), (1.0, 1.0, [3])]
)
def test_unconditional_denoiser_is_evaluated_only_if_needed(scale, sigma, expected):
    labels = []

    def recording_denoise(x, sigma, label):
        jax.debug.callback(lambda label: labels.append(int(label)), label[0], ordered=True)
        return x

    guided = guide(recording_denoise, null_class=7, scale=scale, interval=INTERVAL)
    jax.jit(guided)(jnp.ones((1, *SHAPE)), jnp.full(1, sigma), jnp.full(1, 3, jnp.int32))
    jax.effects_barrier()
    assert labels == expected


def test_all_invalid_settings_are_named():
    with pytest.raises(ValueError, match=r"(?s)scale=-1.*interval\[0\]=2"):
        make_guidance(scale=-1.0, interval=(2.0, 1.0))
