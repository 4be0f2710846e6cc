"""python -m tools.benchmarks.samplers on a run with a random generator."""

import json

import numpy as np
import pytest

from functa.pipeline import load as trained
from tests.support import generator_runs
from tools.benchmarks import samplers as bench_samplers


def refusal(main, arguments, capsys):
    """The message of a program that rejects its arguments with exit status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("samplers") / "run", encoded=True)


def test_what_is_drawn_is_what_the_run_would_draw(run):
    generator = trained.load_generator(run)
    (changed,) = bench_samplers.with_samplers(generator, [("heun", 3)])
    assert changed.generator.sampling.steps == 3
    numbers = np.arange(19, dtype=np.int32)
    labels = numbers % 10
    expected = changed.sample(seed=7, numbers=numbers, labels=labels, batch_size=16)
    draw = bench_samplers.make_draw(changed, batch_size=16)
    np.testing.assert_array_equal(draw(7, labels), expected)
    assert np.abs(draw(8, labels) - expected).max() > 0.01


def test_a_sampler_is_compared_with_the_first(run, capsys):
    arguments = [str(run), "--samplers=euler:2,heun:3,euler:2", "--repeats=2"]
    assert bench_samplers.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["features"]) == (64, "cnn")
    first, other, again = found["rows"]
    assert (first["solver"], first["steps"], other["solver"]) == ("euler", 2, "heun")
    assert (first["ratio"], first["ratio_standard_error"]) == (1, 0)
    assert again | {"samples_per_second": 0} == first | {"samples_per_second": 0}
    assert other["distance"] != first["distance"]
    assert first["standard_error"] > 0
    assert min(row["samples_per_second"] for row in found["rows"]) > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--samplers=heun", "'heun': a sampler looks like heun:18"),
        ("--samplers=huen:18", "solvers are euler, heun, dpmpp_2m"),
        (
            "--samplers=heun:0",
            "heun:0: steps=0",
        ),
        ("--repeats=1", "--repeats=1 must be from 2"),
    ],
)
def test_bad_arguments_are_told(run, capsys, argument, message):
    assert message in refusal(bench_samplers.main, [run, argument], capsys)


def test_a_run_without_a_generator_is_told(tmp_path, capsys):
    told = refusal(bench_samplers.main, [tmp_path / "none"], capsys)
    assert "is not the directory of a run" in told
