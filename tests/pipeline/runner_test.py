"""The pipeline end to end: real processes, real files, real kills."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from functa.configs import digits
from functa.evaluation import generation_eval
from functa.pipeline import runner
from functa.pipeline.run import Run
from functa.runtime import config as config_lib
from functa.runtime import digests, errors
from tests.conftest import ROOT

TINY = "--config=configs/digits.py:tiny"
TIMES = ("seconds", "per_second")


def numbers(workdir):
    """Final metrics, except those that depend on time."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        f"{stage}.{key}": value
        for stage, metrics in summary.items()
        for key, value in metrics.items()
        if not key.endswith(TIMES)
    }


def functaset_bytes(workdir):
    """Shards and TFDS metadata; other files also hold timings."""
    files = sorted((workdir / "functaset").glob("functaset-*array_record*"))
    files += [workdir / "functaset" / name for name in ("features.json", "dataset_info.json")]
    assert files
    return {path.name: path.read_bytes() for path in files}


def test_files_and_metrics_of_all_stages(finished):
    workdir, result = finished
    for name in ("config.json", "environment.json", "summary.json", "report.html"):
        assert (workdir / name).stat().st_size > 100
    summary = json.loads((workdir / "summary.json").read_text())
    wanted = {
        "meta_learn": {"psnr", "psnr_of_mean_mse", "pca_psnr", "images_per_second"},
        "encode": {"psnr", "examples", "bytes_per_example", "examples_per_second"},
        "classify": {"accuracy", "top5_accuracy", "loss"},
    }
    for stage, keys in wanted.items():
        assert keys <= summary[stage].keys()
        assert json.loads((workdir / stage / "metrics.json").read_text()) == summary[stage]
    assert summary["meta_learn"]["test_images"] == 96
    assert summary["encode"]["examples"] == 96 * 2 + 40 + 96
    # Encoding runs the inner loop of training.
    assert summary["encode"]["psnr"] == pytest.approx(summary["meta_learn"]["psnr"], abs=0.01)
    assert "report.html" in result.stdout
    assert list((workdir / "meta_learn").glob("events.out.tfevents.*"))


def test_complete_run_is_not_repeated(finished, run_main):
    workdir, _ = finished
    before = (workdir / "summary.json").read_bytes()
    begin = time.monotonic()
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0
    assert "are complete" in result.stdout
    assert time.monotonic() - begin < 60  # a run takes longer
    assert (workdir / "summary.json").read_bytes() == before


def start(arguments, env, log):
    return subprocess.Popen(
        [sys.executable, "-m", "functa.main", *arguments],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def wait_for(path, text, process, seconds=240):
    """Returns once the log holds `text`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in path.read_text():
            return
        if process.poll() is not None:
            pytest.fail(f"ended before {text!r}:\n{path.read_text()}")
        time.sleep(0.02)
    pytest.fail(f"{text!r} never came:\n{path.read_text()}")


# Log lines after which the run is killed, and the delay in seconds.
KILLS = {
    "meta_learn  step 4/": 0.05,
    "meta_learn  step 12/": 0.48,
    "encode  ": 0.12,
    "classify  step 4/": 0.12,
    "generate  step 4/": 0.3,
    "generate  blocks of samples, evaluation": 0.0,
}


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bytes(finished, program_env, run_main, tmp_path):
    reference, _ = finished
    workdir = tmp_path / "run"
    for number, (moment, seconds) in enumerate(KILLS.items()):
        log = tmp_path / str(number)
        with log.open("w") as file:
            process = start([TINY, f"--workdir={workdir}"], program_env, file)
            wait_for(log, moment, process)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not (workdir / "summary.json").exists()
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert functaset_bytes(workdir) == functaset_bytes(reference)
    assert numbers(workdir) == numbers(reference)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_0(finished, program_env, run_main, tmp_path):
    reference, _ = finished
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = [TINY, "--config.stages=meta_learn", f"--workdir={workdir}"]
    with log.open("w") as file:
        process = start(command, program_env, file)
        wait_for(log, "meta_learn  step 4/", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert "the same command resumes" in log.read_text()
    result = run_main(*command)
    assert "resumes at step" in result.stdout
    whole = numbers(reference)
    assert numbers(workdir) == {name: whole[name] for name in whole if "meta_learn." in name}


@pytest.mark.slow
def test_compiler_optimizations_do_not_change_metrics(finished, run_main, tmp_path):
    """conftest.py disables most of them for speed."""
    workdir = tmp_path / "run"
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    result = run_main(TINY, f"--workdir={workdir}", env=env)
    assert result.returncode == 0, result.stderr
    without, optimized = numbers(finished[0]), numbers(workdir)
    assert optimized.keys() == without.keys()
    for name, value in without.items():
        if isinstance(value, float):
            assert optimized[name] == pytest.approx(value, rel=1e-4), name


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def refusal(workdir, **changes):
    """Message of the UserError that the run raises with a changed config."""
    config = config_lib.load(workdir)
    config.update_from_flattened_dict(changes)
    with pytest.raises(errors.UserError) as caught:
        runner.run_stages(Run(config, workdir, say=print, handle_signals=False))
    return str(caught.value)


def test_another_config_is_refused_with_the_differing_keys(copy):
    before = (copy / "config.json").read_bytes()
    message = refusal(copy, **{"field.width": 8, "seed": 3})
    assert "field.width: 16 in" in message
    assert "seed: 0 in" in message
    assert (copy / "config.json").read_bytes() == before


def test_functaset_of_another_field_is_refused_with_both_digests(copy):
    shutil.rmtree(copy / "classify")
    manifest = copy / "functaset" / "manifest.json"
    content = json.loads(manifest.read_text())
    ours = content["field_digest"]
    content |= {"field_digest": "sha256:" + "0" * 64, "digest": ""}
    content["digest"] = digests.json_digest(content)
    manifest.write_text(json.dumps(content))
    message = refusal(copy)
    assert ours in message
    assert "sha256:000" in message
    assert not (copy / "classify" / "metrics.json").exists()


def test_second_program_is_refused(copy):
    with (copy / ".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        assert str(copy) in refusal(copy)


def test_damaged_metrics_are_reported(copy):
    (copy / "encode" / "metrics.json").write_text('{"psnr": 1')
    assert f"{copy / 'encode' / 'metrics.json'} is damaged" in refusal(copy)


def test_damaged_shard_is_reported_and_made_again_once_deleted(finished, run_main, copy):
    shutil.rmtree(copy / "classify")
    shard = copy / "functaset" / "functaset-train.array_record-00001-of-00005"
    content = bytearray(shard.read_bytes())
    content[300] ^= 1  # the length and the index of the file are unchanged
    shard.write_bytes(content)
    assert f"{shard} is damaged" in refusal(copy)
    shutil.rmtree(copy / "classify")
    shard.unlink()
    result = run_main(TINY, f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    assert "encode  again: " in result.stdout
    assert "encode  again: " in (copy / "log.txt").read_text()
    assert functaset_bytes(copy) == functaset_bytes(finished[0])
    assert numbers(copy) == numbers(finished[0])


@pytest.mark.parametrize("stage", ["classify", "generate"])
def test_stage_does_not_continue_with_another_functaset(copy, stage):
    (copy / stage / "metrics.json").unlink()
    (copy / stage / "functaset.json").write_text('{"digest": "sha256:another"}')
    assert "sha256:another" in refusal(copy, stages=(stage,))
    assert not (copy / stage / "metrics.json").exists()


@pytest.mark.parametrize(
    ("stage", "key"), [("encode", "field_digest"), ("classify", "functaset_digest")]
)
def test_stage_made_from_another_input_is_refused(copy, stage, key):
    path = copy / stage / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {key: "sha256:of another"}))
    assert f"{copy / stage} was made from {key} sha256:of another" in refusal(copy)
    del metrics[key]
    path.write_text(json.dumps(metrics))
    assert f"was made from {key} None" in refusal(copy)


def test_changed_classifier_repeats_only_its_stage(copy):
    changes = {"classify.steps": 6}
    assert str(copy / "classify") in refusal(copy, **changes)
    shutil.rmtree(copy / "classify")
    config, lines = config_lib.load(copy), []
    config.update_from_flattened_dict(changes)
    summary = runner.run_stages(Run(config, copy, say=lines.append, handle_signals=False))
    assert summary["classify"]["steps"] == 6
    assert not any(line.startswith(("meta_learn", "encode", "generate")) for line in lines)


def test_generate_alone_checks_the_images(copy, monkeypatch):
    shutil.rmtree(copy / "generate")
    monkeypatch.setattr(generation_eval, "validate_splits", lambda *_: ["no image serves"])
    assert "no image serves" in refusal(copy, stages=("generate",))
    assert not (copy / "generate").exists()


def test_damaged_field_is_refused(copy):
    shutil.rmtree(copy / "classify")
    for path in (copy / "meta_learn" / "field").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    assert "damaged" in refusal(copy)


@pytest.mark.parametrize(
    ("stages", "is_problem"),
    [
        ((), True),
        (("meta_learn", "meta_learn"), True),
        (("meta_learn", "decode"), True),
        (("classify",), True),
        (("encode", "meta_learn"), True),
        (("meta_learn", "encode"), False),
        (("meta_learn,encode",), False),  # one string, as on the command line
    ],
)
def test_stages_must_be_known_unique_and_after_their_inputs(tmp_path, stages, is_problem):
    config = digits.get_config("tiny")
    config.stages = stages
    run = Run(config, tmp_path / "run", say=print, handle_signals=False)
    assert bool(runner.stage_problems(run)) == is_problem
