"""Report arrays of a field with random parameters."""

import dataclasses

import jax
import numpy as np
import pytest

from functa.evaluation import field_arrays
from functa.fields.field import Field
from functa.fields.fitter import Fitter
from functa.fields.inner_loop import InnerLoop

FIELD = Field(
    image_shape=(8, 8, 1), latent_shape=(2, 2, 3), interpolation="nearest", coordinates="local",
    map="linear", upsampling=1, modulation="shift", width=8, depth=3, w0=10.0,
)  # fmt: skip


@pytest.mark.parametrize("lr_per_step", [pytest.param(False, marks=pytest.mark.slow), True])
def test_field_arrays(lr_per_step, monkeypatch):
    monkeypatch.setattr(field_arrays, "MAX_SIDE", 4 * 8)
    inner_loop = InnerLoop(
        steps=2, lr_shape="scalar", lr_per_step=lr_per_step, initial_lr=0.5, min_lr=1e-3,
        max_lr=1e3, second_order=True, chunks=1,
    )  # fmt: skip
    fitter = Fitter(field=FIELD, inner_loop=inner_loop)
    params = fitter.init(jax.random.key(0))
    if lr_per_step:
        params["log_inner_lrs"] = params["log_inner_lrs"] - np.float32([[[[0.0]]], [[[1.0]]]])
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    arrays = field_arrays.field_arrays(fitter, params, images)

    assert {name: array.shape for name, array in arrays.items()} == {
        "originals": (16, 8, 8, 1),
        "reconstructions": (16, 8, 8, 1),
        "latents": (16, 2, 2, 3),
        "inner_steps": (4, 3, 8, 8, 1),
        "decoded_1x": (4, 8, 8, 1),
        "decoded_4x": (4, 32, 32, 1),  # 16x is larger than MAX_SIDE
    }
    assert all(array.dtype == np.float32 for array in arrays.values())
    originals = images[:16] / np.float32(255)
    np.testing.assert_array_equal(arrays["originals"], originals)
    whole = jax.jit(fitter.fit)(params, originals)
    np.testing.assert_allclose(arrays["latents"], whole.latents, atol=1e-5)
    reconstructions = np.clip(whole.values, 0, 1)
    np.testing.assert_allclose(arrays["reconstructions"], reconstructions, atol=1e-5)
    np.testing.assert_allclose(arrays["decoded_1x"], reconstructions[:4], atol=1e-5)
    decode = jax.jit(FIELD, static_argnums=2)
    large = np.clip(decode(params["field"], whole.latents[:4], (32, 32)), 0, 1)
    np.testing.assert_allclose(arrays["decoded_4x"], large, atol=1e-5)

    start, first, last = np.moveaxis(arrays["inner_steps"], 1, 0)
    zeros = np.zeros((4, 2, 2, 3), np.float32)
    np.testing.assert_allclose(
        start, np.clip(decode(params["field"], zeros, (8, 8)), 0, 1), atol=1e-6
    )
    np.testing.assert_allclose(last, reconstructions[:4], atol=1e-5)
    one_step = dataclasses.replace(fitter, inner_loop=dataclasses.replace(inner_loop, steps=1))
    first_lrs = params | {"log_inner_lrs": params["log_inner_lrs"][:1]}
    values = jax.jit(one_step.fit)(first_lrs, originals[:4]).values
    np.testing.assert_allclose(first, np.clip(values, 0, 1), atol=1e-5)
    assert np.abs(first - start).max() > 0.01
