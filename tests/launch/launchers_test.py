"""The launchers for clusters: a cloud and a Slurm of stand-ins, with real processes, files and signals."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.launch import launch_test
from tests.pipeline import runner_test
from tests.support.cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    made.end()


# launch/tpu_pod.sh


def test_all_missing_variables_are_told_at_once(cloud):
    names = ("TPU_NAME", "PROJECT", "WORKDIR")
    result = cloud.run("example", without=names)
    assert result.returncode == 2
    assert "not set: TPU_NAME PROJECT WORKDIR (" in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (["exampel"], {}, "no config 'exampel'; the configs are"),
        (["example", "--processes=2"], {}, "unknown argument '--processes=2'"),
        (["example", "--restart=-1"], {}, "--restart=-1: want a number"),
        (["example", "--workdir=here"], {}, "WORKDIR names the directory"),
        (["example"], {"WORKDIR": "/mnt/run"}, "WORKDIR=/mnt/run: want gs://BUCKET/FOLDER"),
        (["example"], {"WORKDIR": "gs://bucket"}, "want gs://BUCKET/FOLDER"),
        (["example"], {"SPOT": "yes"}, "SPOT=yes: want 1, 0 or nothing"),
        (["new"], {}, "git add configs/new.py"),
    ],
)
def test_a_pod_refuses_before_anything_is_started(cloud, words, env, told):
    shutil.copy(
        cloud.project.root / "configs/example.py", cloud.project.root / "configs/new.py"
    )  # not in git
    result = cloud.run(*words, **env)
    assert result.returncode == 2
    assert told in result.stderr
    assert cloud.calls() == []


def test_a_pod_that_has_to_be_made_needs_its_type(cloud):
    result = cloud.run("example")
    assert result.returncode == 2
    assert "there is no TPU pod in z; to have it made, set ACCELERATOR_TYPE" in result.stderr
    result = cloud.run("example", ACCELERATOR_TYPE="v99-8")
    assert result.returncode == 2
    assert "to have a TPU v99-8 made, set RUNTIME_VERSION" in result.stderr
    assert {call[3] for call in cloud.calls()} == {"describe"}


def test_what_gcloud_refuses_is_not_taken_for_an_absent_pod(cloud):
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
    assert "is a v5litepod-16, but ACCELERATOR_TYPE=v5litepod-32" in result.stderr
    assert cloud.starts() == []


def test_a_pod_is_made_waited_for_and_runs(cloud):
    result = cloud.run("example:tiny", ACCELERATOR_TYPE="v5litepod-16", SPOT="1")
    assert result.returncode == 0, result.stderr
    (create,) = (call for call in cloud.calls() if call[3] == "create")
    assert {"--node-id=pod", "--accelerator-type=v5litepod-16", "--spot"} <= set(create)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "waiting for the TPU pod: PROVISIONING" in result.stderr
    assert cloud.starts() == ["0", "1"]
    assert result.stdout == "worker 0 has run\n"
    assert cloud.log(1) == "worker 1 has run\n"
    assert cloud.called("queued-resources", "delete") == 0


def test_waiting_has_an_end(cloud):
    env = {"ACCELERATOR_TYPE": "v5litepod-16", "WAIT_SECONDS": "0"}
    result = cloud.run("example", "--restart=0", **env)
    assert result.returncode == 1
    assert "no TPU within WAIT_SECONDS=0; the request is kept" in result.stderr
    assert cloud.called("queued-resources", "create") == 1
    assert cloud.starts() == []
    assert cloud.run("example", ACCELERATOR_TYPE="v5litepod-16").returncode == 0
    assert cloud.called("queued-resources", "create") == 1  # the same request


def test_what_is_left_of_an_earlier_request_is_taken_away(cloud):
    (cloud.folder / "queued").write_text("SUSPENDED")  # its TPU was preempted
    result = cloud.run("example", ACCELERATOR_TYPE="v5litepod-16")
    assert result.returncode == 0, result.stderr
    assert cloud.called("queued-resources", "delete") == 1
    assert cloud.called("queued-resources", "create") == 1
    assert cloud.starts() == ["0", "1"]


HARD = ('--config.note=it\'s "so" $HOME * \\', "--config.other=  two  ")


def arguments_of(cloud, worker):
    home = cloud.folder / str(worker)
    return (home / "calls.txt.main").read_text().splitlines()[1:], [
        *("-P", "-m", "functa.main", f"--config={home}/functa/configs/example.py:8x8x16,tiny"),
        *("--workdir=gs://bucket/the run", *HARD),
    ]


def test_a_pod_that_is_there_gets_this_tree_and_the_arguments_as_they_are(cloud):
    cloud.ready()
    config = cloud.project.root / "configs" / "example.py"
    config.write_text(config.read_text() + "# changed\n")
    config.with_name("unknown.py").touch()
    result = cloud.run("example:8x8x16,tiny", *HARD)
    assert result.returncode == 0, result.stderr
    assert {call[3] for call in cloud.calls()} == {"describe", "scp", "ssh"}
    for worker in range(2):
        told, wanted = arguments_of(cloud, worker)
        assert told == wanted
        copy = cloud.folder / str(worker) / "functa"
        assert (copy / "configs/example.py").read_text().endswith("# changed\n")
        assert not (copy / "configs/unknown.py").exists()
        assert (copy.parent / "calls.txt").read_text() == "venv 3.11\npip .[tpu]\n"
    # A second time the environment is there.
    assert cloud.run("example").returncode == 0
    assert (copy.parent / "calls.txt").read_text() == "venv 3.11\npip .[tpu]\n"
    assert (copy.parent / "functa.log.previous").exists()


def test_a_dry_run_prints_what_can_be_pasted_and_runs_nothing(cloud):
    cloud.ready()
    result = cloud.run("example:8x8x16,tiny", *HARD, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == []
    assert "queued-resources create pod" in result.stdout
    script = result.stdout.partition("# This tree")[2].partition("# After")[0].partition("\n")[2]
    env = cloud.project.env(**cloud.arguments((), (), {})[1])
    subprocess.run(["bash", "-euc", script], env=env, check=True, timeout=60)
    assert cloud.starts() == ["0", "1"]
    for worker in range(2):
        told, wanted = arguments_of(cloud, worker)
        assert told == wanted


def test_a_tree_that_was_cut_off_is_not_used(cloud):
    cloud.ready()
    assert cloud.run("example").returncode == 0
    config = cloud.project.root / "configs" / "example.py"
    config.write_text(config.read_text() + "# changed\n")
    (cloud.folder / "cut").write_text("1")
    result = cloud.run("example", "--restart=0")
    assert result.returncode == 1
    assert cloud.starts() == ["0", "1"]  # of the first time
    home = cloud.folder / "1"
    assert "# changed" not in (home / "functa/configs/example.py").read_text()


def test_a_checkout_of_somebody_is_left_alone(cloud):
    cloud.ready()
    (cloud.folder / "0/functa/.git").mkdir(parents=True)
    result = cloud.run("example")
    assert result.returncode == 2
    assert "functa is a git checkout; move it away" in result.stderr
    assert (cloud.folder / "0/functa/.git").exists()


UNTIL_TERM = (
    'trap "echo saved; exit $FUNCTA_STOPPED_STATUS" TERM; echo ready; while :; do sleep 0.05; done'
)


def test_a_worker_that_fails_ends_the_others(cloud):
    cloud.ready()
    cloud.main(f'[ "$WORKER" = 0 ] || exit 7; {UNTIL_TERM}')
    result = cloud.run("example", "--restart=0")
    assert result.returncode == 7
    assert "the run ended with status 7" in result.stderr
    assert cloud.log(0) == "ready\nsaved\n"


def test_a_failure_is_tried_again_but_not_what_must_be_mended(cloud):
    cloud.ready()
    cloud.main("exit 3")
    assert cloud.run("example", "--restart=1").returncode == 3
    assert cloud.starts() == ["0", "0", "1", "1"]
    cloud.main("exit 2")
    assert cloud.run("example", "--restart=1").returncode == 2
    assert cloud.starts() == ["0", "0", "0", "1", "1", "1"]
    assert cloud.called("tpu-vm", "delete") == 0


def test_a_run_that_was_stopped_from_elsewhere_goes_on(cloud):
    """As before maintenance: the workers have saved, but are not done."""
    cloud.ready()
    cloud.main('[ -e "$HOME/once" ] || { touch "$HOME/once"; exit "$FUNCTA_STOPPED_STATUS"; }')
    result = cloud.run("example")
    assert result.returncode == 0, result.stderr
    assert cloud.starts() == ["0", "0", "1", "1"]


def test_after_a_preemption_the_pod_is_made_again_and_the_run_goes_on(cloud):
    cloud.main(f'[ -e "{cloud.folder}/gone" ] || {{ {UNTIL_TERM}; }}')
    process = cloud.start("example", ACCELERATOR_TYPE="v6e-8")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    (cloud.folder / "gone").touch()
    (cloud.folder / "state").write_text("PREEMPTED")
    (cloud.folder / "queued").write_text("SUSPENDED")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "the TPU pod was preempted" in stderr
    assert cloud.called("queued-resources", "create") == 2
    assert cloud.called("queued-resources", "delete") == 1
    assert cloud.starts() == ["0", "0", "1", "1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_to_all_workers(cloud, number):
    cloud.ready()
    cloud.main(UNTIL_TERM)
    process = cloud.start("example")
    cloud.wait_for(process, lambda: cloud.log(0) == cloud.log(1) == "ready\n")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "the same command goes on from there" in stderr
    assert stdout == "ready\nsaved\n"
    assert cloud.log(1) == "ready\nsaved\n"
    assert cloud.starts() == ["0", "1"]


def test_a_lost_link_leaves_no_worker_running(cloud):
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


def test_the_same_command_takes_over_where_nobody_watches(cloud):
    """The machine that ran the launcher is gone; the workers go on until they are told otherwise."""
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
def test_a_real_run_on_two_workers_loses_one_and_recovers(cloud, program_env, tmp_path):
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
    assert "starting again, 9 more times" in stderr
    assert cloud.starts() == ["0", "0", "1", "1"]
    assert "resumes at step" in stdout
    assert "report: " in stdout
    summary = json.loads((bucket / "run/summary.json").read_text())
    assert summary.keys() >= {"meta_learn", "encode", "classify"}
    assert runner_test.functaset_bytes(bucket / "run")


# launch/slurm.sh

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$CALLS.srun"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path):
    project = launch_test.Project(tmp_path)
    project.add_python("python3", "3.11")
    project.add("srun", SRUN)
    project.add("scontrol", '#!/usr/bin/env bash\necho "$*" >>"$CALLS.scontrol"\n')
    project.add(
        "sbatch",
        '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"$CALLS.sbatch"\nSLURM_JOB_ID=7 bash "${@: -1}"\n',
    )
    return project


def test_slurm_starts_main_with_the_arguments_as_they_are(slurm):
    result = slurm.run(
        "slurm.sh", "example:tiny", "--nodes=2", "--gpus-per-node=4", "--workdir=my runs/one", *HARD
    )
    assert result.returncode == 0, result.stderr
    assert (slurm.folder / "calls.txt.main").read_text().splitlines()[1:] == [
        *("-P", "-m", "functa.main", f"--config={slurm.root}/configs/example.py:tiny"),
        *(f"--workdir={slurm.folder}/my runs/one", *HARD),
    ]
    logs = slurm.folder / "my runs/one.logs"
    assert f"--output={logs}/process-%t.log" in (slurm.folder / "calls.txt.srun").read_text()
    script = (logs / "job.sh").read_text()
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "signal=TERM@120", "requeue"):
        assert f"\n#SBATCH --{line}\n" in script
    assert not (slurm.folder / "calls.txt.scontrol").exists()
    assert slurm.called() == ["venv 3.11", "pip .[cuda]"]


@pytest.mark.parametrize(("status", "again"), [(75, True), (3, False), (2, False)])
def test_slurm_goes_back_into_the_queue_when_it_was_stopped(slurm, status, again):
    slurm.main.write_text(f'[ "$FUNCTA_STOPPED_STATUS" = 75 ] && exit {status}')
    result = slurm.run("slurm.sh", "example", "--time=1-0", "--partition=big")
    assert result.returncode == status
    calls = slurm.folder / "calls.txt.scontrol"
    assert (calls.read_text() if calls.exists() else "") == ("requeue 7\n" if again else "")


@pytest.mark.parametrize("more", [[], ["--gpus-per-node=8", "--cpus-per-task=4", "--time=90"]])
def test_a_dry_run_of_slurm_prints_a_sound_script(slurm, tmp_path, more):
    (slurm.bin / "sbatch").unlink()  # any machine will do
    result = slurm.run("slurm.sh", "example:tiny", "--nodes=3", *more, *HARD, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert slurm.called() == []
    assert not (slurm.folder / "runs").exists()
    script = tmp_path / "job.sh"
    script.write_text(result.stdout)
    subprocess.run(["bash", "-n", script], check=True)
    checker = pathlib.Path(sys.executable).with_name("shellcheck")
    if checker.exists():
        subprocess.run([checker, script], check=True)
    line = result.stdout.partition("srun ")[2].partition(" || ")[0].replace("\\\n", "")
    assert shlex.split(line)[-len(HARD) :] == list(HARD)
    assert ("--exclusive" in result.stdout) == (not more)


@pytest.mark.parametrize(
    "word",
    [
        "--nodes=0",
        "--gpus-per-node=x",
        "--time=soon",
        "--partition=a b",
        "--cpus-per-task=0",
        "--n=2",
    ],
)
def test_slurm_refuses_before_anything_is_started(slurm, word):
    result = slurm.run("slurm.sh", "example", word)
    assert result.returncode == 2
    assert word in result.stderr
    assert slurm.called() == []
    assert not (slurm.folder / "calls.txt.sbatch").exists()


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sh"])
def test_help_of_the_launchers(script):
    result = subprocess.run(
        [ROOT / "launch" / script, "--help"], capture_output=True, text=True, check=True
    )
    assert f"usage: launch/{script} NAME[:OPTIONS]" in result.stdout
    assert "\n  digits\n" in result.stdout
    result = subprocess.run([ROOT / "launch" / script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage:" in result.stderr
