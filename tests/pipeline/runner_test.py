"""The pipeline as a person runs it: real processes, real files, real kills."""

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

from functa.data.functaset import format
from functa.evaluation import generation_eval
from functa.pipeline import runner
from functa.runtime import config as config_lib
from functa.runtime import errors
from tests.conftest import ROOT

TINY = "--config=configs/digits.py:tiny"
TIMES = ("seconds", "per_second")


def numbers(workdir):
    """Final metrics, without what depends on the clock."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        f"{stage}.{key}": value
        for stage, metrics in summary.items()
        for key, value in metrics.items()
        if not key.endswith(TIMES)
    }


def functaset_bytes(workdir):
    """Shards and what TFDS reads; the notes beside them also hold how many seconds a shard took."""
    files = sorted((workdir / "functaset").glob("functaset-*array_record*"))
    files += [workdir / "functaset" / name for name in ("features.json", "dataset_info.json")]
    assert files
    return {path.name: path.read_bytes() for path in files}


def test_all_stages_write_what_the_run_contract_says(finished):
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
    # The functaset's own PSNR is the field's: encoding is the inner loop of training.
    assert summary["encode"]["psnr"] == pytest.approx(summary["meta_learn"]["psnr"], abs=0.01)
    assert "report.html" in result.stdout
    assert list((workdir / "meta_learn").glob("events.out.tfevents.*"))


def test_a_complete_run_returns_at_once(finished, run_main):
    workdir, _ = finished
    before = (workdir / "summary.json").read_bytes()
    begin = time.monotonic()
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0
    assert "are complete" in result.stdout
    assert time.monotonic() - begin < 60  # 10 s on an idle machine; this only notices a re-run
    assert (workdir / "summary.json").read_bytes() == before


def test_another_config_is_refused_by_naming_the_keys(finished, run_main):
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


# Where one run is killed, and how many seconds after it: the first time the next moment is not far.
KILLS = {
    "meta_learn  step 4/": 0.05,
    "meta_learn  step 12/": 0.48,
    "encode  ": 0.12,
    "classify  step 4/": 0.12,
    "generate  step 4/": 0.3,
    "generate  blocks of samples, judged": 0.0,
}


@pytest.mark.slow
def test_killed_at_many_moments_ends_as_if_it_had_not_been(
    finished, program_env, run_main, tmp_path
):
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
    assert "goes on from there" in log.read_text()
    result = run_main(*command)
    assert "resumes at step" in result.stdout
    whole = numbers(reference)
    assert numbers(workdir) == {name: whole[name] for name in whole if "meta_learn." in name}


@pytest.mark.slow
def test_what_is_compiled_as_outside_of_tests_gives_the_same_numbers(finished, run_main, tmp_path):
    """The other tests go without most of the compiler's optimisations (conftest.py)."""
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


def test_a_functaset_of_another_field_is_refused(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    manifest = workdir / "functaset" / "manifest.json"
    content = json.loads(manifest.read_text())
    ours = content["field_digest"]
    # A sound functaset, made by somebody else's field.
    content |= {"field_digest": "sha256:" + "0" * 64, "digest": ""}
    content["digest"] = format.json_digest(content)
    manifest.write_text(json.dumps(content))
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert ours in result.stderr
    assert "sha256:000" in result.stderr
    assert not (workdir / "classify" / "metrics.json").exists()


def test_a_second_program_is_kept_out(finished, run_main):
    workdir, _ = finished
    with (workdir / ".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert f"another program is at work in {workdir}" in result.stderr


def test_damaged_numbers_of_a_complete_run_are_told(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    (workdir / "encode" / "metrics.json").write_text('{"psnr": 1')
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert f"{workdir / 'encode' / 'metrics.json'} is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_functaset_that_was_deleted_is_made_again(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "functaset")
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])


def test_a_lost_shard_is_made_again_by_the_same_command(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    (workdir / "functaset" / "functaset-test.array_record-00000-of-00003").unlink()
    result = run_main(TINY, f"--workdir={workdir}", "--config.stages=encode,classify")
    assert result.returncode == 0, result.stderr
    assert "encode  again: " in result.stdout
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])
    assert "encode  again: " in (workdir / "log.txt").read_text()


def test_a_flipped_byte_in_a_shard_is_told_by_its_name(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    shard = workdir / "functaset" / "functaset-train.array_record-00001-of-00005"
    content = bytearray(shard.read_bytes())
    content[300] ^= 1  # the file's length and index are as they were
    shard.write_bytes(content)
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert f"{shard} is damaged: its digest is" in result.stderr
    assert "delete it and run again" in result.stderr
    assert "Traceback" not in result.stderr
    shard.unlink()
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert functaset_bytes(workdir) == functaset_bytes(finished[0])
    assert numbers(workdir) == numbers(finished[0])


@pytest.mark.parametrize("stage", ["classify", "generate"])
def test_what_one_functaset_began_is_not_finished_with_another(finished, run_main, tmp_path, stage):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / stage / "metrics.json").unlink()
    (workdir / stage / "functaset.json").write_text('{"digest": "sha256:another"}')
    result = run_main(TINY, f"--workdir={workdir}", f"--config.stages={stage}")
    assert result.returncode == 2, result.stderr
    assert f"{stage} was begun with the functaset sha256:another, and" in result.stderr
    assert not (workdir / stage / "metrics.json").exists()


def test_stages_of_another_making_are_not_mixed(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    for stage, key in (("encode", "field_digest"), ("classify", "functaset_digest")):
        path = workdir / stage / "metrics.json"
        was = path.read_text()
        path.write_text(json.dumps(json.loads(was) | {key: "sha256:of another"}))
        result = run_main(TINY, f"--workdir={workdir}")
        assert result.returncode == 2
        assert f"{workdir / stage} was made from {key} sha256:of another" in result.stderr
        without = {name: value for name, value in json.loads(was).items() if name != key}
        path.write_text(json.dumps(without))  # as an earlier version left it
        result = run_main(TINY, f"--workdir={workdir}")
        assert result.returncode == 2
        assert f"was made from {key} (not recorded)" in result.stderr
        path.write_text(was)


def test_another_classifier_needs_only_its_own_stage(finished, run_main, tmp_path):
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


def test_a_generator_alone_is_not_trained_without_images_to_judge_by(
    finished, tmp_path, monkeypatch
):
    workdir = copy_of(finished, tmp_path)
    config = config_lib.load(workdir)
    config.stages = ("generate",)
    shutil.rmtree(workdir / "generate", ignore_errors=True)
    monkeypatch.setattr(generation_eval, "check_splits", lambda *_: ["no image serves"])
    with pytest.raises(errors.UserError, match="no image serves"):
        runner.run_stages(config, workdir, say=print)
    assert not (workdir / "generate").exists()


def test_a_damaged_field_is_refused(finished, run_main, tmp_path):
    workdir = copy_of(finished, tmp_path)
    shutil.rmtree(workdir / "classify")
    for path in (workdir / "meta_learn" / "field").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    result = run_main(TINY, f"--workdir={workdir}")
    assert result.returncode == 2
    assert "no undamaged checkpoint" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.slow
def test_a_full_disk_stops_with_the_path_and_keeps_what_was_complete(finished, run_main, tmp_path):
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
