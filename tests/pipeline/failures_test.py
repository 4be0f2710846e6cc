"""Failures of runs with several processes (docs/SCALE.md)."""

import json
import os
import re
import shutil
import signal
import time

import jax
import pytest

from functa.runtime import distributed
from tests.pipeline.runner_test import TINY
from tests.support import processes

META = (TINY, "--config.stages=meta_learn")


def start(program_env, workdir, faults, *arguments, folder=None, count=2, **settings):
    """Processes of functa.main with faults (tests/support/failing.py); logs go to `folder`."""
    return processes.Processes(
        ["-m", "tests.support.failing", json.dumps(faults), *arguments, f"--workdir={workdir}"],
        count=count,
        folder=folder or workdir.parent / f"{workdir.name}.logs",
        env=program_env,
        **settings,
    )


TIMEOUTS = {
    "functa.data.read_timeout._WARN_SECONDS": 1,
    "functa.data.read_timeout._TIMEOUT_SECONDS": 3.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [0, 1])
def test_slow_input_warns_and_hung_input_ends_all_processes(program_env, tmp_path, hanging):
    slow, hung = tmp_path / "slow", tmp_path / "hung"
    for pipe in (slow, hung):
        os.mkfifo(pipe)
    faults = {
        "*": {"toy": 12, "constant": TIMEOUTS},
        str(hanging): {"fifo": {str(slow): 4, str(hung): 8}},
    }
    with start(program_env, tmp_path / "run", faults, *META) as group:
        group.wait_for("has been waiting for input of step 4 for 2 s", index=hanging)
        slow.write_text("data")
        group.wait_for("has been waiting for input of step 8", index=hanging)
        begin = time.monotonic()
        assert group.wait(60) == [1, 1], group.output()
        assert time.monotonic() - begin < 20
        logs = [log.read_text() for log in group.logs]
    own, other = logs[hanging], logs[1 - hanging]
    for seconds in (1, 2, 3):
        assert f"has been waiting for input of step 8 for {seconds} s" in own
    assert f"functa: process {hanging} of 2: no input of step 8 for 4 s: a read of the data" in own
    assert f"process {hanging} has ended: no input of step 8 for 4 s" in other
    assert "step 4/12" in other
    assert "has been waiting" not in other
    assert "has died" not in other
    assert "no input of step 8" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_nan_in_one_process_ends_all_and_names_the_step(program_env, tmp_path):
    faults = {"*": {"toy": 12}, "1": {"nan": 8}}
    with start(program_env, tmp_path / "run", faults, *META) as group:
        assert group.wait(60) == [1, 1], group.output()
        logs = [log.read_text() for log in group.logs]
    saved = tmp_path / "run" / "meta_learn" / "checkpoints"
    for index, log in enumerate(logs):
        assert (
            f"functa: process {index} of 2: meta_learn: the loss of step 8 is not finite; the last finite "
            f"checkpoint is: step 6 in {saved}" in log
        )
        assert "Traceback" not in log
    assert sorted(path.name for path in saved.glob("step_*")) == ["step_3", "step_6"]


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_processes_with_different_clocks_stop_together(program_env, tmp_path, ahead):
    faults = {"*": {"alone": 60}, str(ahead): {"clock": 3600}}
    with start(program_env, tmp_path / "run", faults, *META) as group:
        for index in range(2):
            group.wait_for("alone", index=index)
        group.processes[0].send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert group.wait(50) == [0, 0], group.output()
        assert time.monotonic() - begin < 20
        for log in group.logs:
            assert "meta_learn stopped" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_full_disk_of_one_process_ends_all_with_status_2(
    program_env,
    finished,
    tmp_path,
    full,
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    for folder in ("encode", "functaset", "classify"):
        shutil.rmtree(workdir / folder)
    # All other files are smaller than these shards.
    large = ("--config.encode.shard_megabytes=0.45", "--config.encode.num_augmentations=50")
    encode = (TINY, "--config.stages=encode", *large, "--config.encode.dtype=float32")
    with start(program_env, workdir, {str(full): {"file_size": 200_000}}, *encode) as group:
        assert group.wait(60) == [2, 2], group.output()
        own, other = (group.logs[k].read_text() for k in (full, 1 - full))
    assert re.search(
        rf"functa: process {full} of 2: .*File too large: about [\d,]+ bytes are required; .*functaset-",
        own,
    )
    assert "Traceback" not in own
    assert f"process {full} has ended: " in other
    assert "File too large: about" in other
    with start(program_env, workdir, {}, *encode) as group:
        assert group.wait(120) == [0, 0], group.output()
    assert not list(workdir.rglob("*.partial"))


def test_timeout_is_distinguished_from_a_dead_process():
    gloo = "Gloo all-reduce failed: [unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"
    assert "did not reach this operation" in distributed.error_summary(
        jax.errors.JaxRuntimeError(gloo)
    )
    closed = "Gloo all-reduce failed: [pair.cc:547] Connection closed by peer"
    assert "died or is unreachable" in distributed.error_summary(jax.errors.JaxRuntimeError(closed))


@pytest.mark.slow
def test_hung_input_ends_a_single_process(program_env, tmp_path):
    os.mkfifo(tmp_path / "hung")
    faults = {"*": {"toy": 12, "constant": TIMEOUTS, "fifo": {str(tmp_path / "hung"): 8}}}
    with start(program_env, tmp_path / "run", faults, *META, count=1) as group:
        group.wait_for("blocks")
        assert group.wait(20) == [1], group.output()
        output = group.logs[0].read_text()
    assert "functa: process 0 of 1" not in output
    assert "functa: no input of step 8 for 4 s" in output
    assert "stopped by InputTimeoutError" in (tmp_path / "run" / "log.txt").read_text()
