"""launch/slurm.sh with fake Slurm commands."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from tests.support.launchers import HARD_ARGUMENTS, Project

SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$CALLS.srun"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path):
    project = Project(tmp_path)
    project.add_python("python3", "3.11")
    project.add("srun", SRUN)
    project.add("scontrol", '#!/usr/bin/env bash\necho "$*" >>"$CALLS.scontrol"\n')
    project.add(
        "sbatch",
        '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"$CALLS.sbatch"\nSLURM_JOB_ID=7 bash "${@: -1}"\n',
    )
    return project


def test_slurm_passes_the_config_and_arguments(slurm):
    slurm.main.write_text('echo "$JAX_PLATFORMS|$XLA_FLAGS"')
    result = slurm.run(
        "slurm.sh",
        "example:tiny",
        "--env=XLA_FLAGS=--a --b",
        "--nodes=2",
        "--gpus-per-node=4",
        "--workdir=my runs/one",
        *HARD_ARGUMENTS,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cuda,cpu|--a --b\n")
    assert (slurm.folder / "calls.txt.main").read_text().splitlines()[1:] == [
        *("-P", "-m", "functa.main", f"--config={slurm.root}/configs/example.py:tiny"),
        *(f"--workdir={slurm.folder}/my runs/one", *HARD_ARGUMENTS),
    ]
    logs = slurm.folder / "my runs/one.logs"
    assert f"--output={logs}/process-%t.log" in (slurm.folder / "calls.txt.srun").read_text()
    script = (logs / "job.sh").read_text()
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "signal=TERM@120", "requeue"):
        assert f"\n#SBATCH --{line}\n" in script
    assert not (slurm.folder / "calls.txt.scontrol").exists()
    assert slurm.called() == ["venv 3.11", "pip .[cuda12]"]


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (3, False), (2, False)])
def test_slurm_requeues_a_stopped_job(slurm, status, requeued):
    slurm.main.write_text(f'[ "$FUNCTA_STOPPED_STATUS" = 75 ] && exit {status}')
    result = slurm.run("slurm.sh", "example", "--time=1-0", "--partition=big")
    assert result.returncode == status
    calls = slurm.folder / "calls.txt.scontrol"
    assert (calls.read_text() if calls.exists() else "") == ("requeue 7\n" if requeued else "")


@pytest.mark.parametrize("more", [[], ["--gpus-per-node=8", "--cpus-per-task=4", "--time=90"]])
def test_a_dry_run_of_slurm_prints_a_valid_script(slurm, tmp_path, more):
    (slurm.bin / "sbatch").unlink()  # works without Slurm
    result = slurm.run("slurm.sh", "example:tiny", "--nodes=3", *more, *HARD_ARGUMENTS, "--dry-run")
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
    assert shlex.split(line)[-len(HARD_ARGUMENTS) :] == list(HARD_ARGUMENTS)
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
def test_slurm_refuses_invalid_arguments_before_it_starts(slurm, word):
    result = slurm.run("slurm.sh", "example", word)
    assert result.returncode == 2
    assert word in result.stderr
    assert slurm.called() == []
    assert not (slurm.folder / "calls.txt.sbatch").exists()
