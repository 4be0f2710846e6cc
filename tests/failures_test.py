"""What goes wrong in a run of several processes, and what follows (docs/SCALE.md)."""

import json
import os
import time

import jax
import pytest

from functa import distributed
from tests import processes
from tests.pipeline_test import TINY

META = (TINY, "--config.stages=meta_learn")


def start(program_env, workdir, faults, *arguments, folder=None, **settings):
    """Two processes of functa.main with faults (tests/failing.py); `folder` is that of their logs."""
    return processes.Processes(
        ["-m", "tests.failing", json.dumps(faults), *arguments, f"--workdir={workdir}"],
        count=2,
        folder=folder or workdir.parent / f"{workdir.name}.logs",
        env=program_env,
        **settings,
    )


PATIENCE = {"functa.data.patience._TELL_SECONDS": 1, "functa.data.patience._HUNG_SECONDS": 3.5}


@pytest.mark.parametrize("hanging", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_slow_input_goes_on_and_hung_input_ends_all_by_name(program_env, tmp_path, hanging):
    slow, hung = tmp_path / "slow", tmp_path / "hung"
    for pipe in (slow, hung):
        os.mkfifo(pipe)
    faults = {
        "*": {"toy": 12, "constant": PATIENCE},
        str(hanging): {"fifo": {str(slow): 4, str(hung): 8}},
    }
    with start(program_env, tmp_path / "run", faults, *META) as group:
        group.wait_for("has been waiting for input of step 4 for 2 s", index=hanging)
        slow.write_text("there")
        group.wait_for("has been waiting for input of step 8", index=hanging)
        begin = time.monotonic()
        assert group.wait(60) == [1, 1], group.told()
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


def test_a_nan_of_one_process_ends_all_with_its_step_and_name(program_env, tmp_path):
    faults = {"*": {"toy": 12}, "1": {"nan": 8}}
    with start(program_env, tmp_path / "run", faults, *META) as group:
        assert group.wait(60) == [1, 1], group.told()
        logs = [log.read_text() for log in group.logs]
    saved = tmp_path / "run" / "meta_learn" / "checkpoints"
    for index, log in enumerate(logs):
        assert (
            f"functa: process {index} of 2: meta_learn: the loss of step 8 is not finite; the last good "
            f"checkpoint is step 6 in {saved}" in log
        )
        assert "Traceback" not in log
    assert sorted(path.name for path in saved.glob("step_*")) == ["step_3", "step_6"]


def test_who_does_not_come_is_not_called_dead():
    gloo = "Gloo all-reduce failed: [unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"
    assert "has not come to this point" in distributed.cause(jax.errors.JaxRuntimeError(gloo))
    closed = "Gloo all-reduce failed: [pair.cc:547] Connection closed by peer"
    assert "has died or cannot be reached" in distributed.cause(jax.errors.JaxRuntimeError(closed))
