"""Noise schedules against the formulas of their papers."""

import numpy as np
import pytest

from functa.diffusion.schedules import make_schedule

KARRAS = dict(name="karras", sigma_min=0.002, sigma_max=80.0, rho=7.0)


def test_karras_schedule_matches_the_paper():
    sigmas = make_schedule(**KARRAS, steps=18)
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    np.testing.assert_allclose(sigmas, [*expected, 0], rtol=1e-6)
    assert sigmas.dtype == np.float32
    np.testing.assert_allclose(make_schedule(**KARRAS, steps=1), [80, 0])


def test_flow_schedule_is_uniform_in_t():
    sigmas = make_schedule(name="flow", steps=4, sigma_max=99.0).astype(np.float64)
    np.testing.assert_allclose(sigmas / (1 + sigmas), [0.99, 0.7425, 0.495, 0.2475, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosine"}, "cosine"),
        (
            KARRAS | {"steps": 0, "rho": 0.0, "sigma_min": 90.0},
            r"(?s)steps=0.*sigma_min=90.*rho=0",
        ),
        ({"name": "flow", "steps": 0, "sigma_max": np.inf}, r"(?s)steps=0.*sigma_max=inf"),
    ],
)
def test_all_invalid_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**settings)


def test_unknown_settings_are_type_errors():
    with pytest.raises(TypeError, match="rho"):
        make_schedule(name="flow", steps=3, sigma_max=80.0, rho=7.0)
