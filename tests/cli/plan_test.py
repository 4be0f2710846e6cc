"""The command `functa plan`."""

import argparse
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from functa.cli import plan
from functa.cli.main import main
from functa.configs import cifar10_spatial
from functa.runtime.errors import UserError
from tests.conftest import ROOT

# ml_collections loads config files in a deprecated way.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


@pytest.fixture(autouse=True)
def four_devices():
    """Starts JAX, so that the command cannot change the number of devices for other tests."""
    assert jax.device_count() == 4


def test_json_has_every_number(capsys):
    assert main(["plan", "digits:tiny", "cpu:2", "--json", "--config.classify.steps=7"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["devices"], found["hosts"]) == (2, 1)
    names = ["meta_learn", "encode", "classify", "generate"]
    assert [stage["name"] for stage in found["stages"]] == names
    assert found["stages"][2]["steps"] == 7
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    assert found["assumptions"]["utilization"] == 0.5
    assert found["stages"][0]["work"]["multiply_adds"] > 0
    assert found["stages"][0]["analysis"] is None


@pytest.mark.slow
def test_several_clusters_are_compared(capsys):
    arguments = ["--config.stages=meta_learn", "--utilization=0.3", "--compile"]
    assert main(["plan", "digits:tiny", "1xH100", "2xA100", *arguments]) == 0
    output = capsys.readouterr().out
    assert "| 1xH100 | 1 |" in output
    assert "| 2xA100 | 2 |" in output
    assert "30%" in output
    assert "TOO MUCH" not in output


@pytest.mark.slow
def test_a_step_is_measured_on_the_devices_of_this_machine(capsys):
    assert main(["plan", "digits:tiny", "cpu:4", "--measure", "--config.stages=classify"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("| step, measured here |") for row in rows)
    assert main(["plan", "digits:tiny", "cpu:8", "--measure"]) == 2
    assert "cpu:8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits:tiny", "gpu:8"], ["gpu:8"]),
        (["nothing", "cpu:2"], ["nothing"]),
        (["digits:tiny", "cpu:2", "--config.field.widht=3"], ["widht", "width"]),
        (["digits:tiny", "cpu:2", "--config.field.width=wide"], ["width"]),
        (["digits:tiny", "cpu:2", "--config.stages=paint"], ["paint"]),
        (["digits:tiny", "cpu:2", "--config.mesh.fsdp=3"], ["mesh.fsdp=3"]),
        (["digits:tiny", "cpu:3", "--config.encode.batch_size=0"], ["encode.batch_size"]),
        (["digits:tiny", "cpu:1", "cpu:2", "--measure"], ["--measure"]),
    ],
)  # fmt: skip
def test_user_errors(capsys, arguments, words):
    assert main(["plan", *arguments]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "argument", ["--utilization=2", "--images=7", "--images=7,0", "--decode-rate=-1", "--nothing"]
)
def test_impossible_arguments(capsys, argument):
    with pytest.raises(SystemExit) as error:
        main(["plan", "digits:tiny", "cpu:2", argument])
    assert error.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err


def test_split_sizes_are_published_or_given():
    data = cifar10_spatial.get_config("tiny").data
    assert plan.split_sizes(data, None) == {"train": 96, "validation": 40, "test": 96}
    data.max_examples = 0
    assert plan.split_sizes(data, None)["train"] == 50_000 - 40
    assert plan.split_sizes(data, (70, 20)) == {"train": 30, "validation": 40, "test": 20}
    with pytest.raises(UserError, match="data.validation_examples"):
        plan.split_sizes(data, (40, 20))
    data.train_split = "train[:10%]"
    with pytest.raises(UserError, match="--images"):
        plan.split_sizes(data, None)


def test_assumptions_are_flags_or_defaults():
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    chip = plan.hardware.CHIPS["H100"]
    found = plan.assumptions(parser.parse_args(["digits"]), (8, 8, 3), chip)
    assert (found.utilization, found.image_bytes) == (0.2, 192)
    arguments = ["digits", "--image-bytes=9", "--decode-rate=8", "--storage-bandwidth=7"]
    found = plan.assumptions(parser.parse_args(arguments), (8, 8, 3), chip)
    assert (found.image_bytes, found.decode_rate, found.storage_bandwidth) == (9, 8, 7)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_libtpu_compiles_for_a_slice(program_env):
    result = subprocess.run(
        [sys.executable, "-m", "functa.cli", "plan", "digits:tiny", "v5e-4", "--compile", "--json"],
        cwd=ROOT, env=program_env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)
    assert all(stage["analysis"]["temporary_bytes"] >= 0 for stage in found["stages"])
