"""What devices send each other, read from the compiled programs; and the command that tells it for a machine."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from functa.configs import cifar10_spatial, digits, imagenet
from functa.plan import xla_stats
from functa.runtime import mesh
from functa.training.tasks.builders import build_meta_learning
from functa.training.train_step import initial_state
from tests.conftest import ROOT

CONFIG = "--config=configs/digits.py:tiny"


@pytest.mark.parametrize(
    "config",
    [
        digits.get_config("tiny"),
        cifar10_spatial.get_config("8x8x16,nearest,tiny"),
        cifar10_spatial.get_config("8x8x16,bilinear,tiny"),
        imagenet.get_config("tiny"),  # windows
    ],
    ids=lambda config: config.name,
)
def test_a_step_sends_the_gradient_once_and_scalars(config):
    whole = mesh.make_mesh()
    assert whole.size == 4
    config.meta_learn.batch_size = (
        32  # a number of each image would be more than what is left below
    )
    (found,) = xla_stats.collectives(xla_stats.training_step(config, whole))
    assert found.kind == "all-reduce"
    task = build_meta_learning(config, sources={})
    state = jax.eval_shape(functools.partial(initial_state, task), jax.random.key(0))
    (numbers,) = found.numbers
    params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert params < numbers < params + 20  # the rest are scalars to log


@pytest.mark.parametrize("options", ["8x8x16,nearest,tiny", "8x8x16,bilinear,tiny"])
def test_fitting_sends_nothing(options):
    config, whole = cifar10_spatial.get_config(options), mesh.make_mesh()
    assert xla_stats.collectives(xla_stats.encoder(config, whole)) == []
    task = build_meta_learning(config, sources={})
    params = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((16, *config.data.image_shape), np.uint8)
    evaluate = jax.jit(
        task.metrics.evaluate,
        in_shardings=(mesh.replicated(whole), mesh.batched(whole)),
        out_shardings=mesh.batched(whole),
    )
    assert xla_stats.collectives(evaluate.lower(params, {"image": images}).compile()) == []


def compile_for(program_env, *arguments):
    return subprocess.run(
        [sys.executable, "tools/compile_for.py", *arguments],
        cwd=ROOT,
        env=program_env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_compile_for_tells_memory_and_collectives(program_env):
    result = compile_for(program_env, "cpu:8", CONFIG, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["devices"] == 8
    assert [kind for kind, _ in found["step"]["collectives"]] == ["all-reduce"]
    assert found["encode"]["collectives"] == []
    assert found["step"]["temporary_bytes"] > 1000
    assert found["step"]["argument_bytes"] > 4 * 617  # the params, their average, Muon's state


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_compile_for_a_tpu_slice(program_env):
    result = compile_for(program_env, "v5e:2x2", CONFIG, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["devices"] == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cpu:3", CONFIG), "batch_size=16 must be a positive multiple of the 3 devices"),
        (("gpu:8", CONFIG), "TOPOLOGY=gpu:8: want cpu:N, or a TPU slice"),
        (("cpu:8",), "--config=configs/NAME.py is needed"),
        (("cpu:8", CONFIG, "--config.field.width=0"), "width"),
    ],
)
def test_compile_for_refuses(program_env, arguments, told):
    result = compile_for(program_env, *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
