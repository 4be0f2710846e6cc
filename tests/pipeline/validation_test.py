"""Validation: shipped configs on every number of devices."""

import pathlib

import pytest
from jax.sharding import AbstractMesh

import functa.configs
from functa.pipeline import validation
from functa.pipeline.config_files import load_config
from functa.plan.programs import Programs
from functa.runtime import mesh as mesh_lib

NAMES = sorted(
    path.stem
    for path in pathlib.Path(functa.configs.__path__[0]).glob("*.py")
    if path.stem not in ("__init__", "common")
)
CONFIGS = [f"{name}{preset}" for name in NAMES for preset in ("", ":tiny", ":two_core", ":one_gpu")]


def load(name):
    try:
        return load_config(name)
    except ValueError:
        return None  # there is no such preset


@pytest.mark.parametrize("name", [name for name in CONFIGS if load(name)])
def test_every_config_suits_every_number_of_devices(name):
    config = load(name)
    programs = Programs(config)
    for devices in (1, 3, 4, 8, 16, 32, 64, 256):
        sizes = mesh_lib.axis_sizes(devices, **config.mesh)
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        assert validation.validate(config, None, stages=config.stages, mesh=mesh) == []
        for stage in ("meta_learn", "classify", "generate"):
            if stage in config.stages:
                assert programs.batch_size(stage, mesh) % devices == 0
                assert programs.batch_size(stage, mesh) % config[stage].batch_size == 0
