import json

import pytest

from functa.configs import cifar10_functa, cifar10_spatial, common, digits, imagenet, mnist
from functa.runtime import config as config_lib

EXPERIMENTS = (digits, mnist, cifar10_functa, cifar10_spatial, imagenet)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_the_same_keys_and_a_tiny_preset(experiment):
    keys = config_lib.flatten(config_lib.to_dict(common.base())).keys()
    for options in ("", "tiny"):
        config = experiment.get_config(options)
        found = config_lib.flatten(config_lib.to_dict(config)).keys()
        different = {key for key in keys ^ found if ".model." not in key}
        assert not different
    assert config.meta_learn.steps <= 20
    assert experiment.__doc__
    assert "Command:" in experiment.__doc__


def test_options_come_in_any_order():
    one = cifar10_spatial.get_config("4x4x64,bilinear,two_core")
    other = cifar10_spatial.get_config("two_core,4x4x64,bilinear")
    assert one.field == other.field
    assert one.field.latent_shape == (4, 4, 64)
    assert one.field.interpolation == "bilinear"
    assert one.meta_learn == other.meta_learn


@pytest.mark.parametrize(
    ("options", "message"), [("8x8x16,4x4x64", "two options"), ("8x8", "unknown option '8x8'")]
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cifar10_spatial.get_config(options)


def test_frozen_config_is_loaded(tmp_path):
    config = digits.get_config("tiny")
    assert config_lib.freeze(config, tmp_path) == []
    assert config_lib.load(tmp_path) == config
    assert config_lib.freeze(config, tmp_path) == []


def test_different_keys_are_named(tmp_path):
    config = digits.get_config("tiny")
    config_lib.freeze(config, tmp_path)
    written = (tmp_path / "config.json").read_bytes()
    config.field.width = 99
    config.classify.model = common.mlp(width=3)
    config.stages = ("encode",)  # which stages to run may change, and where images lie
    config.data.data_dir = "elsewhere"
    (tmp_path / "classify").mkdir()
    different = config_lib.freeze(config, tmp_path)
    keys = {line.split(":")[0] for line in different}
    assert {"field.width", "classify.model.heads"} <= keys
    assert all(key == "field.width" or key.startswith("classify.model") for key in keys)
    assert sum(str(tmp_path / "classify") in line for line in different) == len(keys) - 1
    assert (tmp_path / "config.json").read_bytes() == written


def test_settings_of_a_stage_may_change_before_it_starts(tmp_path):
    config = digits.get_config("tiny")
    config_lib.freeze(config, tmp_path)
    (tmp_path / "encode").mkdir()
    config.classify.steps = 99
    assert config_lib.freeze(config, tmp_path) == []
    assert config_lib.load(tmp_path).classify.steps == 99
    config.encode.dtype = "int8"
    (line,) = config_lib.freeze(config, tmp_path)
    assert line.startswith("encode.dtype")


def test_directory_without_a_run_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        config_lib.load(tmp_path)


def test_failed_write_keeps_the_old_json(tmp_path):
    path = tmp_path / "a.json"
    config_lib.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        config_lib.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
