"""The benchmarks' references compute what they are compared with; how fast they are is no test."""

import ast
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from functa.configs import cifar10_spatial
from functa.data import loader
from functa.fields import inner_loop
from functa.fields.fitter import build_field
from functa.fields.pixels import to_float
from functa.training.tasks import meta_learning
from functa.training.tasks.builders import build_meta_learning
from tests.conftest import ROOT
from tests.support import functaset_sets
from tools.benchmarks import compression as bench_compression  # noqa: E402
from tools.benchmarks import decode as bench_decode  # noqa: E402
from tools.benchmarks import functaset as bench_functaset  # noqa: E402
from tools.benchmarks import growth as bench_growth  # noqa: E402
from tools.benchmarks import input as bench_input  # noqa: E402
from tools.benchmarks import reference as plain  # noqa: E402
from tools.benchmarks import scaling as bench_scaling  # noqa: E402


def refusal(main, arguments, capsys):
    """The message of a program that rejects its arguments with exit status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def config():
    config = cifar10_spatial.get_config("8x8x16,nearest,tiny")
    config.field.latent_shape = (4, 4, 6)
    config.field.depth = 4
    config.meta_learn.cells_per_image = 0
    return config


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_the_plain_reference_is_the_fast_path(config, kind):
    """Values and outer gradients, second order; the project's own bound is 1e-5 relative."""
    config = config.copy_and_resolve_references()
    config.field.map = kind
    field, loop = build_field(config), config.inner_loop
    task = build_meta_learning(config, sources={})
    params = jax.jit(task.init)(jax.random.key(1))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    images = to_float(images)

    def fast(params):
        fitted = inner_loop.fit(
            field, params["field"], params["log_inner_lrs"], images,
            steps=loop.steps, second_order=True,
        )  # fmt: skip
        return fitted.losses[-1].mean()

    slow = functools.partial(plain.loss, field, images=images, steps=loop.steps)
    value, gradient = jax.jit(jax.value_and_grad(fast))(params)
    expected, wanted = jax.jit(jax.value_and_grad(lambda params: slow(params)))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(theirs).max()))


def bench(program_env, tool, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"tools.benchmarks.{tool}", *arguments],
        cwd=ROOT, env=program_env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "arguments", "compared"),
    [
        ("step", ["--batch_size=2"], ["speedup_over_reference"]),
        ("step", ["--batch_size=2", "--noreference"], []),
        ("encode", ["--batches=2"], ["speedup_over_reference", "stage_over_fit"]),
    ],
)
def test_a_benchmark_prints_its_object(program_env, tool, arguments, compared):
    tiny = "--config=configs/cifar10_spatial.py:tiny"
    result = bench(program_env, tool, tiny, "--json", "--repeats=1", *arguments)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    for key in ("images_per_second", "fraction_of_ceiling", "peak_bytes", *compared):
        assert measured[key] > 0, key
    assert ("reference_images_per_second" in measured) == ("speedup_over_reference" in compared)
    assert measured["fraction_of_ceiling"] == pytest.approx(
        measured["operations_per_second"] / measured["ceiling_operations_per_second"]
    )


@pytest.mark.parametrize("tool", ["step", "encode"])
def test_a_benchmark_refuses_what_it_cannot_compare(program_env, tool):
    result = bench(program_env, tool, "--config=configs/cifar10_spatial.py:bilinear,tiny")
    assert result.returncode == 2
    assert "nearest lookup" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("tool", "argument", "told"),
    [
        ("step", "--batch_size=0", "--batch_size=0: 0 is not a positive integer"),
        ("step", "--config.meta_learn.micro_batches=3", "micro_batches=3 parts each"),
        ("encode", "--config=configs/nope.py", "configs/nope.py"),
    ],
)
def test_a_benchmark_refuses_what_means_nothing(program_env, tool, argument, told):
    result = bench(program_env, tool, argument)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("tool", "argument", "told"),
    [
        (bench_input, "--records=0", "0 is not at least 1"),
        (bench_decode, "--source=nowhere", "holds no JPEG files"),
        (bench_input, "--latent_shape=8x8", "8x8 is not three numbers"),
        (bench_functaset, "--batch_size=9", "does not divide by 2 processes"),
        (bench_functaset, "--shard_megabytes=0", "must be above 0"),
        (bench_functaset, "--sample=2", "1% or 0.01"),
        (bench_scaling, "--counts=2,4", "1 among them"),
        (bench_scaling, "--counts=1,two", "want numbers"),
    ],
)
def test_arguments_that_mean_nothing_are_told(capsys, tool, argument, told):
    assert told in refusal(tool.main, [argument], capsys)


def test_bench_input_prints_a_rate_for_every_cache(program_env, tmp_path):
    small = ["--records=300", "--latent_shape=2x2x3", "--batch_size=32", "--batches=4"]
    result = bench(program_env, "input", "--json", "--repeats=1", *small)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert all(measured[cache]["records_per_second"] > 0 for cache in ("none", "host", "device"))
    assert measured["records"] == 300
    result = bench(program_env, "input", f"--functaset={tmp_path}")
    assert result.returncode == 2
    assert "no complete functaset" in result.stderr


def test_bench_decode_says_how_fast_and_how_different(program_env, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        waves = np.outer(rng.random(80), rng.random(90))[..., None] * [90, 160, 250]
        Image.fromarray(waves.astype(np.uint8)).save(tmp_path / f"{k}.jpg")
    small = [f"--source={tmp_path}", "--size=32", "--images=2", "--repeats=1", "--json"]
    result = bench(program_env, "decode", *small)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert (measured["images"], measured["size"]) == (2, 32)
    ways = measured["ways"]
    assert all(way["images_per_second"] > 0 for way in ways.values())
    assert (ways["pillow"]["changed"], ways["pillow"]["psnr"]) == (0, None)
    # 80 is twice 32, but not four times.
    assert ways["draft"]["changed"] == 1
    assert ways["draft"]["psnr"] > 25
    assert ways["draft2"]["changed"] == 0
    assert measured["tiny"] > 0
    assert all(measured["check"][pool] > 0 for pool in ("one_thread", "threads", "processes"))


def test_compression_of_every_kind_is_measured(tmp_path, capsys):
    functaset_sets.write(tmp_path / "f", dtype="float32", latent_shape=(4, 4, 8))
    arguments = [str(tmp_path / "f"), "--repeats=1"]
    assert bench_compression.main([*arguments, "--dtypes=float16,int8"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["dtype"] for row in rows] == ["float16"] * 6 + ["int8"] * 6
    assert {row["records"] for row in rows} == {30}
    assert all(row["write_per_second"] > 0 and row["read_per_second"] > 0 for row in rows)
    assert bench_compression.main([*arguments, "--kinds=none"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
    for wrong, told in (
        ("--kinds=zip", "Unknown option zip"),
        ("--dtypes=int4", "--dtypes=int4"),
        ("--split=dev", "no split 'dev'"),
    ):
        assert told in refusal(bench_compression.main, [*arguments, wrong], capsys)


@pytest.fixture
def one_after_the_other(monkeypatch):
    """The processes of bench_functaset as calls."""
    monkeypatch.setattr(
        bench_functaset,
        "_together",
        lambda function, work: [function(work, index=k) for k in range(work.processes)],
    )


SMALL_SET = ["--records=700", "--shard_megabytes=0.01", "--batch_size=32", "--json"]


@pytest.mark.parametrize("more", [[], ["--dtype=int8", "--latent_shape=4x2x3"]])
def test_a_set_is_written_verified_and_read(one_after_the_other, capsys, more):
    assert bench_functaset.main([*SMALL_SET, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["shards"] == -(-700 // (10_000 // found["record_bytes"]))
    assert found["verify"]["decoded"] == found["shards"]  # one of each is more than a hundredth
    assert found["read"]["steps"] == 32
    assert [len(peaks) for peaks in found["read"]["peak_bytes"]] == [8, 8]
    assert bench_functaset.main([*SMALL_SET[:-1], *more]) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")


@pytest.mark.parametrize(
    ("shuffled", "told"),
    [
        (lambda positions: positions // 2, "records were read"),
        (lambda positions: np.roll(positions, np.random.default_rng().integers(32)), "are others"),
    ],
)
def test_what_is_read_wrongly_is_told(one_after_the_other, monkeypatch, capsys, shuffled, told):
    def wrong(positions, *, num_examples, seed):
        return shuffled(positions) % num_examples

    monkeypatch.setattr(loader, "shuffled_examples", wrong)
    assert bench_functaset.main(SMALL_SET) == 1
    assert any(told in problem for problem in json.loads(capsys.readouterr().out)["problems"])


def test_one_record_with_latents_of_another_is_told(one_after_the_other, monkeypatch, capsys):
    invented = bench_functaset.invented

    def wrong(numbers, shape):  # as they are written
        return invented(np.where(numbers == 123, 124, numbers), shape)

    write = bench_functaset.write

    def write_wrongly(work, index):
        with monkeypatch.context() as patch:
            patch.setattr(bench_functaset, "invented", wrong)
            return write(work, index)

    monkeypatch.setattr(bench_functaset, "write", write_wrongly)
    assert bench_functaset.main(SMALL_SET) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(problem.endswith("record 123 has latents of another") for problem in problems)


def test_a_directory_that_is_not_there_is_told(capsys):
    assert bench_functaset.main([*SMALL_SET, "--directory=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_readers_of_many_records_need_no_more_memory_the_longer_they_read(program_env):
    result = bench(program_env, "functaset", "--records=200000", "--json")
    assert result.returncode == 0, result.stderr + result.stdout
    for peaks in json.loads(result.stdout)["read"]["peak_bytes"]:
        assert peaks[-1] - peaks[1] < 30e6, peaks
        assert peaks[-1] < 1e9


def literal(text):
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


@pytest.mark.slow
def test_scaling_has_a_row_for_every_count_and_kind(program_env):
    arguments = ["--config=configs/digits.py:tiny", "--repeats=2", "--counts=1,2", "--json"]
    result = bench(program_env, "scaling", *arguments)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [(row["kind"], row["processes"], row["images"]) for row in rows]
    assert kinds == [("weak", 1, 8), ("weak", 2, 16), ("strong", 1, 16), ("strong", 2, 16)]
    for row in rows:
        assert (
            min(row[f"{name}_seconds"] for name in ("step", "expected", "allreduce", "encode")) > 0
        )


def test_every_row_of_growth_is_a_config_that_works(capsys):
    for row, arguments in bench_growth.ROWS.items():
        config = cifar10_spatial.get_config("8x8x16,nearest,two_core")
        for name, value in (argument.split("=") for argument in arguments):
            if name != "--batch_size":
                key = name.removeprefix("--config.")
                config.update_from_flattened_dict({key: literal(value)})
        assert meta_learning.validate(config) == [], row
    assert bench_growth.main(["--rows=nothing"]) == 2
    assert "no row begins with 'nothing'" in capsys.readouterr().err
