"""Latents of unit scale, and back."""

from types import SimpleNamespace

import numpy as np
import pytest

from functa.models import normalization
from functa.models.normalization import KINDS, make_normalization
from tests.training.tasks.classification_test import FakeFunctaset


@pytest.fixture(scope="module")
def functaset():
    return FakeFunctaset(train=400, validation=10, test=10)


@pytest.mark.parametrize("kind", KINDS)
def test_restore_is_the_inverse(functaset, kind):
    made = make_normalization(functaset, kind=kind)
    latents = functaset.arrays["test"]["latents"]
    np.testing.assert_allclose(made.restore(made.normalize(latents)), latents, rtol=1e-3, atol=1e-3)


def test_what_each_kind_makes_one(functaset):
    latents = functaset.arrays["train"]["latents"]
    cells = {
        kind: np.asarray(make_normalization(functaset, kind=kind).normalize(latents)).reshape(-1, 4)
        for kind in KINDS
    }
    assert cells["scalar"].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(cells["channel"].std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(cells["channel"].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(
        np.cov(cells["whitened"], rowvar=False, ddof=0), np.eye(4), atol=1e-3
    )
    # Channels stay what they were, as far as they can.
    assert all(
        np.corrcoef(cells["whitened"][:, k], cells["channel"][:, k])[0, 1] > 0.7 for k in range(4)
    )


@pytest.mark.parametrize(
    ("scalar_std", "std", "kind", "message"),
    [
        (1.0, [1.0, 0.0, 2.0, float("nan")], "channel", r"channels \[1, 3\] are \[0.0, nan\]"),
        (0.0, [1.0] * 4, "scalar", r"channels \[0\] are \[0.0\]"),
        (1.0, [1.0] * 4, "none", "known are scalar, channel, whitened"),
    ],
)
def test_what_cannot_be_normalised_is_told(scalar_std, std, kind, message):
    manifest = SimpleNamespace(mean=[0.0] * 4, std=std, scalar_std=scalar_std)
    with pytest.raises(ValueError, match=message):
        make_normalization(SimpleNamespace(manifest=manifest), kind=kind)


def test_the_covariance_is_of_so_many_numbers_and_no_more(monkeypatch):
    """Spread over the split: with room for a tenth of it, every tenth."""
    made = FakeFunctaset(train=50, validation=1, test=1)
    latents = made.arrays["train"]["latents"]
    monkeypatch.setattr(normalization, "_COUNTED_NUMBERS", 5 * latents[0].size)
    whitened = make_normalization(made, kind="whitened").normalize(latents[::10])
    cells = np.asarray(whitened).reshape(-1, latents.shape[-1])
    np.testing.assert_allclose(
        np.cov(cells, rowvar=False, ddof=0), np.eye(cells.shape[-1]), atol=1e-3
    )


def test_latents_that_do_not_vary_cannot_be_whitened(functaset):
    flat = FakeFunctaset(train=8, validation=1, test=1)
    flat.arrays["train"]["latents"][:] = 1
    with pytest.raises(ValueError, match="do not vary"):
        make_normalization(flat, kind="whitened")


def test_a_direction_that_carries_nothing_is_not_blown_up():
    made = FakeFunctaset(train=50, validation=1, test=1)
    made.arrays["train"]["latents"][..., 3] = made.arrays["train"]["latents"][..., 2]
    normalised = make_normalization(made, kind="whitened").normalize(
        made.arrays["train"]["latents"]
    )
    assert np.abs(normalised).max() < 20
