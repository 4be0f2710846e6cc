"""The pipeline end to end: real processes, real files, real kills."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from functa.evaluation import generation_eval
from functa.pipeline import runner
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


def test_another_config_is_rejected_with_the_differing_keys(finished, run_main):
    workdir, _ = finished
    before = (workdir / "config.json").read_bytes()
    result = run_main(TINY, f"--workdir={workdir}", "--config.field.width=8", "--config.seed=3")
    assert result.returncode == 2
    assert "field.width: 16 in" in result.stderr
    assert "seed: 0 in" in result.stderr
    assert (workdir / "config.json").read_bytes() == before


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


def copy_of(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished[0], workdir)
    return workdir


def test_functaset_of_field_problem_is_rejected(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    manifest = workdir / "functaset" / "manifest.json"
    content = json.loads(manifest.read_text())
    ours = content["field_digest"]
    content |= {"field_digest": "sha256:" + "0" * 64, "digest": ""}
    content["digest"] = digests.json_digest(content)
    manifest.write_text(json.dumps(content))
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert ours in result.stderr
    assert "sha256:000" in result.stderr
    assert not (workdir / "classify" / "metrics.json").exists()


def test_second_program_is_rejected(finished, run_main):
    workdir, _ = finished
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert str(workdir) in result.stderr


def test_damaged_metrics_are_reported(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    (workdir / "encode" / "metrics.json").write_text('{"psnr": 1')
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert f"{workdir / 'encode' / 'metrics.json'} is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_deleted_functaset_is_made_again(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "functaset")
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])


def test_deleted_shard_is_made_again(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    (workdir / "functaset" / "functaset-test.array_record-00000-of-00003").unlink()
    result = run_main(TINY, f"--workdir={workdir}", "--config.stages=encode,classify")
    assert result.returncode == 0, result.stderr
    assert "encode  again: " in result.stdout
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])
    assert "encode  again: " in (workdir / "log.txt").read_text()


def test_flipped_byte_in_a_shard_is_reported_with_its_file(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    shard = workdir / "functaset" / "functaset-train.array_record-00001-of-00005"
    content = bytearray(shard.read_bytes())
    content[300] ^= 1  # the file's length and index are as they were
    shard.write_bytes(content)
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert f"{shard} is damaged" in result.stderr
    assert "Traceback" not in result.stderr
    shard.unlink()
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])
    assert numbers(workdir) == numbers(finished[0])


@pytest.mark.parametrize("stage", ["classify", "generate"])
def test_stage_does_not_continue_with_another_functaset(finished, run_main, tmp_path, stage):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / stage / "metrics.json").unlink()
    (workdir / stage / "functaset.json").write_text('{"digest": "sha256:another"}')
    result = run_main(TINY, f"--workdir={workdir}", f"--config.stages={stage}")
    assert result.returncode == 2, result.stderr
    assert "sha256:another" in result.stderr
    assert not (workdir / stage / "metrics.json").exists()


def test_stages_made_from_other_inputs_are_rejected(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    for stage, key in (("encode", "field_digest"), ("classify", "functaset_digest")):
        path = workdir / stage / "metrics.json"
        was = path.read_text()
        path.write_text(json.dumps(json.loads(was) | {key: "sha256:of another"}))
        result = run_main(TINY, f"--workdir={workdir}")
        assert result.returncode == 2
        assert f"{workdir / stage} was made from {key} sha256:of another" in result.stderr
        without = {name: value for name, value in json.loads(was).items() if name != key}
        path.write_text(json.dumps(without))
        result = run_main(TINY, f"--workdir={workdir}")
        assert result.returncode == 2
        assert f"was made from {key} None" in result.stderr
        path.write_text(was)


def test_changed_classifier_repeats_only_its_stage(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    changed = "--config.classify.steps=6"
    result = run_main(TINY, f"--workdir={workdir}", changed)
    assert result.returncode == 2
    assert f"remove {workdir / 'classify'} to change it" in result.stderr
    shutil.rmtree(workdir / "classify")
    result = run_main(TINY, f"--workdir={workdir}", changed)
    assert result.returncode == 0, result.stderr
    assert "meta_learn  " not in result.stdout.split("stage")[0]
    assert json.loads((workdir / "classify" / "metrics.json").read_text())["steps"] == 6


def test_generate_alone_checks_the_images(finished, tmp_path, monkeypatch):
    workdir = copy_of(finished, tmp_path)
    config = config_lib.load(workdir)
    config.stages = ("generate",)
    shutil.rmtree(workdir / "generate", ignore_errors=True)
    monkeypatch.setattr(generation_eval, "validate_splits", lambda *_: ["no image serves"])
    with pytest.raises(errors.UserError, match="no image serves"):
        runner.run_stages(config, workdir, say=print)
    assert not (workdir / "generate").exists()


def test_damaged_field_is_rejected(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    for path in (workdir / "meta_learn" / "field").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert "checkpoints are damaged" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.slow
def test_full_disk_is_reported_and_complete_parts_are_kept(finished, run_main, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "functa-test", str(mount)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        workdir = mount / "run"
        shutil.copytree(
            finished[0], workdir, ignore=shutil.ignore_patterns("functaset", "encode", "classify")
        )
        filler = mount / "filler"
        with contextlib.suppress(OSError):  # fills it
            filler.write_bytes(bytes(32 << 20))
        filler.write_bytes(filler.read_bytes()[: -64 * 1024])
        result = run_main(TINY, f"--workdir={workdir}")
        assert result.returncode == 2
        assert str(mount) in result.stderr
        filler.unlink()
        result = run_main(TINY, f"--workdir={workdir}", "--config.stages=('meta_learn', 'encode')")
        assert result.returncode == 0, result.stderr
        assert functaset_bytes(workdir) == functaset_bytes(finished[0])
    finally:
        subprocess.run(["umount", str(mount)], check=False)
