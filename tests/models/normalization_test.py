"""Normalization: unit scale, its inverse, and statistics that cannot normalize."""

from types import SimpleNamespace

import numpy as np
import pytest

from functa.models import normalization
from functa.models.normalization import KINDS, make_normalization
from tests.training.tasks.classification_test import FakeFunctaset


def normalized_cells(functaset, kind, rows=slice(None)):
    """[n, d], all cells of training examples."""
    latents = functaset.arrays["train"]["latents"][rows]
    normalized = make_normalization(functaset, kind=kind).normalize(latents)
    return np.asarray(normalized).reshape(-1, latents.shape[-1])


def covariance(cells):
    return np.cov(cells, rowvar=False, ddof=0)


@pytest.fixture(scope="module")
def functaset():
    return FakeFunctaset(train=400, validation=10, test=10)


@pytest.mark.parametrize("kind", KINDS)
def test_restore_is_the_inverse_of_normalize(functaset, kind):
    normalize, restore = make_normalization(functaset, kind=kind)
    latents = functaset.arrays["test"]["latents"]
    np.testing.assert_allclose(restore(normalize(latents)), latents, rtol=1e-3, atol=1e-3)


def test_each_kind_has_unit_scale(functaset):
    cells = {kind: normalized_cells(functaset, kind) for kind in KINDS}
    assert cells["scalar"].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(cells["channel"].std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(cells["channel"].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(covariance(cells["whitened"]), np.eye(4), atol=1e-3)
    # ZCA changes the channels as little as possible.
    for k in range(4):
        assert np.corrcoef(cells["whitened"][:, k], cells["channel"][:, k])[0, 1] > 0.7


@pytest.mark.parametrize(
    ("scalar_std", "std", "kind", "message"),
    [
        (1.0, [1.0, 0.0, 2.0, float("nan")], "channel", r"channel.*\[1, 3\]"),
        (0.0, [1.0] * 4, "scalar", r"scalar.*\[0\]"),
        (1.0, [1.0] * 4, "none", "normalization='none'"),
    ],
)
def test_invalid_statistics_are_named(scalar_std, std, kind, message):
    manifest = SimpleNamespace(mean=[0.0] * 4, std=std, scalar_std=scalar_std)
    with pytest.raises(ValueError, match=message):
        make_normalization(SimpleNamespace(manifest=manifest), kind=kind)


def test_covariance_is_measured_on_evenly_spaced_examples(monkeypatch):
    functaset = FakeFunctaset(train=50, validation=1, test=1)
    size = functaset.arrays["train"]["latents"][0].size
    monkeypatch.setattr(normalization, "_MAX_VALUES", 5 * size)
    cells = normalized_cells(functaset, "whitened", rows=slice(None, None, 10))
    np.testing.assert_allclose(covariance(cells), np.eye(4), atol=1e-3)


def test_constant_latents_cannot_be_whitened():
    functaset = FakeFunctaset(train=8, validation=1, test=1)
    functaset.arrays["train"]["latents"][:] = 1
    with pytest.raises(ValueError, match="whitened"):
        make_normalization(functaset, kind="whitened")


def test_directions_without_variance_are_not_amplified():
    functaset = FakeFunctaset(train=50, validation=1, test=1)
    latents = functaset.arrays["train"]["latents"]
    latents[..., 3] = latents[..., 2]
    assert np.abs(normalized_cells(functaset, "whitened")).max() < 20
