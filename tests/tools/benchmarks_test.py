"""The benchmarks run, and their plain reference computes what it is compared with."""

import functools
import json

import jax
import numpy as np
import pytest

from functa.configs import cifar10_spatial
from functa.fields import inner_loop
from functa.fields.fitter import build_field
from functa.fields.pixels import to_float
from functa.training.tasks.builders import build_meta_learning
from tools.benchmarks import api, field, functaset, reference, scaling


@pytest.mark.parametrize("kind", [pytest.param("linear", marks=pytest.mark.slow), "conv3x3"])
def test_reference_computes_the_loss_and_gradient_of_the_fit(kind):
    config = cifar10_spatial.get_config("8x8x16,nearest,tiny")
    config.field.update(latent_shape=(4, 4, 6), depth=4, map=kind)
    config.meta_learn.cells_per_image = 0
    task, model = build_meta_learning(config, sources={}), build_field(config)
    params = jax.jit(task.init)(jax.random.key(1))
    images = to_float(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    steps = config.inner_loop.steps

    def loss(params):
        lrs = params["log_inner_lrs"]
        fit = inner_loop.fit(model, params["field"], lrs, images, steps=steps, second_order=True)
        return fit.losses[-1].mean()

    plain = functools.partial(reference.loss, model, images=images, steps=steps)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(lambda params: plain(params)))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(theirs).max()))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["step", "encode"])
@pytest.mark.parametrize("more", [[], ["--no-reference"]])
def test_field_measures_a_program_beside_reference_and_ceiling(capsys, program, more):
    arguments = [f"--program={program}", "--config=cifar10_spatial:tiny", "--batch-size=4"]
    assert field.main([*arguments, "--repeats=1", "--json", *more]) == 0
    result = json.loads(capsys.readouterr().out)
    rate, ceiling = result["multiply_adds_per_second"], result["ceiling_per_second"]
    assert result["fraction_of_ceiling"] == pytest.approx(rate / ceiling)
    assert rate == pytest.approx(result["multiply_adds_per_image"] * result["images_per_second"])
    assert ("speedup_over_reference" in result) == (not more)


def test_functaset_measures_writing_and_every_cache(capsys):
    small = ["--records=300", "--latent-shape=2x2x3", "--batch-size=32", "--batches=4"]
    assert functaset.main([*small, "--repeats=1", "--shard-megabytes=0.01", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["shards"] > 1
    assert all(result[f"read_{cache}_per_second"] > 0 for cache in ("none", "host", "device"))


def test_api_compares_decode_and_encode_with_bare_programs(capsys):
    assert api.main(["--images=3", "--scale=2", "--repeats=1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == "16x16"
    for name in ("decode", "encode"):
        rates = [result[f"{prefix}{name}_images_per_second"] for prefix in ("bare_", "")]
        assert result[f"{name}_ratio"] == pytest.approx(rates[0] / rates[1])


@pytest.mark.slow
def test_scaling_compares_one_and_two_processes(capsys, program_env, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    tiny = ["--config=digits:tiny", "--per-process=2", "--repeats=1", "--json"]
    assert scaling.main(tiny) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row["processes"]) for row in rows] == [
        (kind, count) for kind in ("weak", "strong") for count in (1, 2)
    ]
    assert all(row["efficiency"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("benchmark", "argument"),
    [
        (field, "--config=cifar10_spatial:bilinear,tiny"),
        (field, "--batch-size=0"),
        (field, "--config.field.widht=3"),
        (functaset, "--latent-shape=8x8"),
        (functaset, "--caches=disk"),
        (scaling, "--processes=0"),
    ],
)
def test_wrong_arguments_are_refused(capsys, benchmark, argument):
    with pytest.raises(SystemExit) as error:
        benchmark.main([argument])
    assert error.value.code == 2
    assert argument.partition("=")[0].lstrip("-").partition(".")[0] in capsys.readouterr().err
