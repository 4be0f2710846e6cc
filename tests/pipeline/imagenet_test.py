"""configs/imagenet.py at its full size, on one photograph."""

import subprocess
import sys

import numpy as np
import pytest

from functa.configs import imagenet
from functa.pipeline import validation
from functa.plan import hardware
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("options", "name"),
    [(None, "v5e-256"), ("16x16x256", "v5e-256"), ("bilinear", "v5e-256"), ("photos", "cpu:2")],
)
def test_every_value_is_possible(options, name):
    config = imagenet.get_config(options)
    mesh = hardware.parse(name).mesh(**config.mesh)
    assert validation.validate(config, None, stages=config.stages, mesh=mesh) == []


@pytest.mark.slow
def test_the_full_size_step_fits_and_devices_that_share_the_image_agree(
    tmp_path, test_data, program_env
):
    env = program_env | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}  # it is about memory
    found = {}
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npz"
        command = [
            sys.executable,
            "-m",
            "tests.support.full_size",
            test_data / "kodak",
            out,
            str(devices),
        ]
        subprocess.run(command, check=True, cwd=ROOT, env=env)
        found[devices] = np.load(out)
    assert found[1]["peak_bytes"] < 2e9
    assert found[8]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    one, eight = found[1]["gradient"], found[8]["gradient"]
    layers = 2 * 256 + 256 + 6 * (256 * 256 + 256) + 256 * 3 + 3
    assert len(one) == layers + 9 * 64 * 4 * 7 * 256 + 3 * 64  # and the map, and the rates
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-4 * np.abs(one).max())
