"""A run that was asked to use an accelerator never falls back to the CPU."""

import pytest

from functa.runtime import platforms
from functa.runtime.errors import UserError


@pytest.mark.parametrize("requested", ["tpu", "tpu,cpu", "cuda,cpu", "gpu"])
def test_missing_libraries_are_named(monkeypatch, requested):
    monkeypatch.setenv("JAX_PLATFORMS", requested)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="libtpu" if "tpu" in requested else "cuda13"):
        platforms.require_libraries()


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax_cuda12_plugin")
    monkeypatch.setattr(platforms, "_has_driver", lambda: False)
    with pytest.raises(UserError, match="driver"):
        platforms.require_libraries()
    monkeypatch.setattr(platforms, "_has_driver", lambda: True)
    platforms.require_libraries()


def test_cpus_need_nothing(monkeypatch):
    for requested in ("", "cpu"):
        monkeypatch.setenv("JAX_PLATFORMS", requested)
        platforms.require_libraries()


def test_an_accelerator_that_does_not_start_may_be_tried_again(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': busy\nmore")

    monkeypatch.setattr("jax.devices", devices)
    with pytest.raises(platforms.AcceleratorError, match="busy"):
        platforms.start_platform()


def test_a_run_exits_with_status_2(run_main, tmp_path):
    workdir = tmp_path / "run"
    result = run_main(
        "--config=configs/digits.py:tiny", f"--workdir={workdir}", env={"JAX_PLATFORMS": "tpu,cpu"}
    )
    assert result.returncode == 2
    assert "libtpu" in result.stderr
    assert not workdir.exists()
