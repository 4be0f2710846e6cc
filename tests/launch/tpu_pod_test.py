"""launch/tpu_pod.sh with a fake gcloud; processes, files and signals are real."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.pipeline import runner_test
from tests.support.cloud import Cloud
from tests.support.launchers import HARD_ARGUMENTS


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end()


def test_all_missing_variables_are_listed(cloud):
    names = ("TPU_NAME", "PROJECT", "WORKDIR")
    result = cloud.run("example", without=names)
    assert result.returncode == 2
    assert all(name in result.stderr for name in names)
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("words", "env", "key"),
    [
        (["exampel"], {}, "'exampel'"),
        (["example", "--processes=2"], {}, "--processes=2"),
        (["example", "--restart=-1"], {}, "--restart=-1"),
        (["example", "--workdir=here"], {}, "--workdir=here"),
        (["example"], {"WORKDIR": "/mnt/run"}, "WORKDIR=/mnt/run"),
        (["example"], {"WORKDIR": "gs://bucket"}, "WORKDIR=gs://bucket"),
        (["example"], {"SPOT": "yes"}, "SPOT=yes"),
        (["new"], {}, "git add configs/new.py"),
    ],
)
def test_a_pod_refuses_invalid_arguments_before_it_starts(cloud, words, env, key):
    shutil.copy(
        cloud.project.root / "configs/example.py", cloud.project.root / "configs/new.py"
    )  # untracked
    result = cloud.run(*words, **env)
    assert result.returncode == 2
    assert key in result.stderr
    assert cloud.calls() == []


def test_the_data_is_looked_for_and_the_config_checked_before_a_pod_is_created(cloud):
    config = cloud.project.root / "configs" / "example.py"
    config.write_text("def get_config(options=None):\n    ...\n")
    env = {"ACCELERATOR_TYPE": "v5litepod-16"}
    for data in ({}, {"DATA_DIR": "/data"}):
        result = cloud.run("example", **env, **data)
        assert result.returncode == 2
        assert "DATA_DIR" in result.stderr
    (cloud.folder / "no data").touch()
    result = cloud.run("example", **env, DATA_DIR="gs://bucket/data")
    assert result.returncode == 2
    assert "gs://bucket/data" in result.stderr
    (cloud.folder / "no data").unlink()
    result = cloud.run("example:tiny", **env, DATA_DIR="gs://bucket/data", CHECK_STATUS="2")
    assert result.returncode == 2
    words = f"{config}:tiny v5litepod-16 --config.data.data_dir=gs://bucket/data"
    assert f"check {words}" in cloud.project.called()
    assert cloud.called("queued-resources", "create") == 0
    cloud.main('echo "$JAX_PLATFORMS|$LIBTPU_INIT_ARGS"')
    words = ("example:tiny", "--env=LIBTPU_INIT_ARGS=--a=1 --b")
    result = cloud.run(*words, **env, DATA_DIR="gs://bucket/data")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "tpu,cpu|--a=1 --b\n"
    main = (cloud.folder / "0" / "calls.txt.main").read_text()
    assert "--config.data.data_dir=gs://bucket/data" in main


def test_creating_a_pod_needs_its_type(cloud):
    result = cloud.run("example")
    assert result.returncode == 2
    assert "ACCELERATOR_TYPE" in result.stderr
    result = cloud.run("example", ACCELERATOR_TYPE="v99-8")
    assert result.returncode == 2
    assert "RUNTIME_VERSION" in result.stderr
    assert {call[3] for call in cloud.calls()} == {"describe"}


def test_an_error_of_gcloud_does_not_mean_that_the_pod_is_absent(cloud):
    cloud.ready()
    (cloud.folder / "broken").write_text("yes")
    result = cloud.run("example", "--restart=0", ACCELERATOR_TYPE="v5litepod-16")
    assert result.returncode == 1
    assert "UNAUTHENTICATED" in result.stderr
    assert {call[3] for call in cloud.calls()} == {"describe"}


def test_a_pod_of_another_type_is_not_used(cloud):
    cloud.ready()
    result = cloud.run("example", ACCELERATOR_TYPE="v5litepod-32")
    assert result.returncode == 2
    assert "ACCELERATOR_TYPE=v5litepod-32" in result.stderr
    assert cloud.starts() == []


def test_a_pod_is_created_and_runs(cloud):
    result = cloud.run("example:tiny", ACCELERATOR_TYPE="v5litepod-16", SPOT="1")
    assert result.returncode == 0, result.stderr
    (create,) = (call for call in cloud.calls() if call[3] == "create")
    assert {"--node-id=pod", "--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "PROVISIONING" in result.stderr
    assert cloud.starts() == ["0", "1"]
    assert result.stdout == "worker 0 has run\n"
    assert cloud.log(1) == "worker 1 has run\n"
    assert cloud.called("queued-resources", "delete") == 0


def test_waiting_is_limited(cloud):
    env = {"ACCELERATOR_TYPE": "v5litepod-16", "WAIT_SECONDS": "0"}
    result = cloud.run("example", "--restart=0", **env)
    assert result.returncode == 1
    assert "WAIT_SECONDS=0" in result.stderr
    assert cloud.called("queued-resources", "create") == 1
    assert cloud.starts() == []
    assert cloud.run("example", ACCELERATOR_TYPE="v5litepod-16").returncode == 0
    assert cloud.called("queued-resources", "create") == 1  # the same request


def test_an_earlier_request_is_deleted(cloud):
    (cloud.folder / "queued").write_text("SUSPENDED")  # the TPU was preempted
    result = cloud.run("example", ACCELERATOR_TYPE="v5litepod-16")
    assert result.returncode == 0, result.stderr
    assert cloud.called("queued-resources", "delete") == 1
    assert cloud.called("queued-resources", "create") == 1
    assert cloud.starts() == ["0", "1"]


def arguments_of(cloud, worker):
    home = cloud.folder / str(worker)
    return (home / "calls.txt.main").read_text().splitlines()[1:], [
        *("-P", "-m", "functa.main", f"--config={home}/functa/configs/example.py:8x8x16,tiny"),
        *("--workdir=gs://bucket/the run", *HARD_ARGUMENTS),
    ]


def test_an_existing_pod_gets_the_tracked_files_and_the_arguments(cloud):
    cloud.ready()
    config = cloud.project.root / "configs" / "example.py"
    config.write_text(config.read_text() + "# changed\n")
    config.with_name("unknown.py").touch()
    result = cloud.run("example:8x8x16,tiny", *HARD_ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert {call[3] for call in cloud.calls()} == {"describe", "scp", "ssh"}
    for worker in range(2):
        actual, expected = arguments_of(cloud, worker)
        assert actual == expected
        copy = cloud.folder / str(worker) / "functa"
        assert (copy / "configs/example.py").read_text().endswith("# changed\n")
        assert not (copy / "configs/unknown.py").exists()
        assert (copy.parent / "calls.txt").read_text() == "venv 3.11\npip .[tpu]\n"
    # The second run does not install again.
    assert cloud.run("example").returncode == 0
    assert (copy.parent / "calls.txt").read_text() == "venv 3.11\npip .[tpu]\n"
    assert (copy.parent / "functa.log.previous").exists()


def test_a_dry_run_prints_commands_that_work(cloud):
    cloud.ready()
    result = cloud.run("example:8x8x16,tiny", *HARD_ARGUMENTS, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == []
    assert "queued-resources create pod" in result.stdout
    script = result.stdout.partition("# This tree")[2].partition("# After a")[0].partition("\n")[2]
    env = cloud.project.env(**cloud.arguments((), (), {})[1])
    subprocess.run(["bash", "-euc", script], env=env, check=True, timeout=60)
    assert cloud.starts() == ["0", "1"]
    for worker in range(2):
        actual, expected = arguments_of(cloud, worker)
        assert actual == expected


def test_an_incomplete_copy_is_not_used(cloud):
    cloud.ready()
    assert cloud.run("example").returncode == 0
    config = cloud.project.root / "configs" / "example.py"
    config.write_text(config.read_text() + "# changed\n")
    (cloud.folder / "cut").write_text("1")
    result = cloud.run("example", "--restart=0")
    assert result.returncode == 1
    assert cloud.starts() == ["0", "1"]  # of the first run
    home = cloud.folder / "1"
    assert "# changed" not in (home / "functa/configs/example.py").read_text()


def test_a_git_checkout_is_not_overwritten(cloud):
    cloud.ready()
    (cloud.folder / "0/functa/.git").mkdir(parents=True)
    result = cloud.run("example")
    assert result.returncode == 2
    assert (cloud.folder / "0/functa/.git").exists()


UNTIL_TERM = (
    'trap "echo saved; exit $FUNCTA_STOPPED_STATUS" TERM; echo ready; while :; do sleep 0.05; done'
)


def test_a_worker_that_fails_ends_the_others(cloud):
    cloud.ready()
    cloud.main(f'[ "$WORKER" = 0 ] || exit 7; {UNTIL_TERM}')
    result = cloud.run("example", "--restart=0")
    assert result.returncode == 7
    assert cloud.log(0) == "ready\nsaved\n"


def test_a_failure_restarts_the_run_but_a_user_error_does_not(cloud):
    cloud.ready()
    cloud.main("exit 3")
    assert cloud.run("example", "--restart=1").returncode == 3
    assert cloud.starts() == ["0", "0", "1", "1"]
    cloud.main("exit 2")
    assert cloud.run("example", "--restart=1").returncode == 2
    assert cloud.starts() == ["0", "0", "0", "1", "1", "1"]
    assert cloud.called("tpu-vm", "delete") == 0


def test_a_run_that_maintenance_stopped_resumes(cloud):
    cloud.ready()
    cloud.main('[ -e "$HOME/once" ] || { touch "$HOME/once"; exit "$FUNCTA_STOPPED_STATUS"; }')
    result = cloud.run("example")
    assert result.returncode == 0, result.stderr
    assert cloud.starts() == ["0", "0", "1", "1"]


def test_a_preempted_pod_is_created_again_and_the_run_resumes(cloud):
    cloud.main(f'[ -e "{cloud.folder}/gone" ] || {{ {UNTIL_TERM}; }}')
    process = cloud.start("example", ACCELERATOR_TYPE="v6e-8")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    (cloud.folder / "gone").touch()
    (cloud.folder / "state").write_text("PREEMPTED")
    (cloud.folder / "queued").write_text("SUSPENDED")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert cloud.called("queued-resources", "create") == 2
    assert cloud.called("queued-resources", "delete") == 1
    assert cloud.starts() == ["0", "0", "1", "1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_to_all_workers(cloud, number):
    cloud.ready()
    cloud.main(UNTIL_TERM)
    process = cloud.start("example")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert stdout == "ready\nsaved\n"
    assert cloud.log(1) == "ready\nsaved\n"
    assert cloud.starts() == ["0", "1"]


def test_a_lost_connection_stops_the_workers(cloud):
    cloud.ready()
    cloud.main(UNTIL_TERM)
    process = cloud.start("example", "--restart=0")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (link,) = (
        int(child)
        for child in children
        if "--command=bash functa/launch/tpu_worker.sh run"
        in pathlib.Path(f"/proc/{child}/cmdline").read_text()
    )
    os.kill(link, signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0, stderr
    assert cloud.log(0) == cloud.log(1) == "ready\nsaved\n"


def test_the_same_command_resumes_after_the_launcher_was_killed(cloud):
    """The workers continue until the second launcher stops and restarts them."""
    cloud.ready()
    cloud.main(f'[ -e "{cloud.folder}/gone" ] || {{ {UNTIL_TERM}; }}')
    process = cloud.start("example")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    process.kill()
    (cloud.folder / "gone").touch()
    result = cloud.run("example")
    process.communicate(timeout=30)
    assert result.returncode == 0, result.stderr
    for worker in range(2):
        previous = cloud.folder / str(worker) / "functa.log.previous"
        assert previous.read_text() == "ready\nsaved\n"
    assert cloud.starts() == ["0", "0", "1", "1"]


@pytest.mark.slow
def test_a_real_run_recovers_from_a_killed_worker(cloud, program_env, tmp_path):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    cloud.ready()
    names = ("JAX_", "PYTHON", "TF_CPP", "FUNCTA")
    cloud.env(**{k: v for k, v in program_env.items() if k.startswith(names)})
    cloud.main(
        f'words=("${{@/gs:\\/\\/bucket/{bucket}}}")\nexec {sys.executable} "${{words[@]}}"\n'
    )
    process = cloud.start("digits:tiny", WORKDIR="gs://bucket/run")
    cloud.wait_for(process, lambda: "meta_learn  step 4/" in cloud.log(0), seconds=200)
    (pid,) = (cloud.folder / "1/functa.state/main").read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert "restart" in stderr
    assert cloud.starts() == ["0", "0", "1", "1"]
    assert "resumes at step" in stdout
    assert "report: " in stdout
    summary = json.loads((bucket / "run/summary.json").read_text())
    assert summary.keys() >= {"meta_learn", "encode", "classify"}
    assert runner_test.functaset_bytes(bucket / "run")
