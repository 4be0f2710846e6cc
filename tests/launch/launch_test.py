"""The launchers and the environment they make, with stand-ins for Python, apt-get and the package."""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci" / "run"])
COMMANDS = (
    *("bash", "cat", "chmod", "dirname", "env", "find", "flock", "grep"),
    *("basename", "id", "ls", "mkdir", "mv", "rm", "sed", "seq", "sleep", "tail", "taskset"),
)

# A stand-in for every Python. VERSION and ENSUREPIP are filled in; `-m venv` makes another
# stand-in, which writes what pip is asked for to calls.txt and runs the file pip.sh, where a test
# wants something to happen; functa.main runs main.sh.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  "-ISc import sys"*) echo VERSION ;;
  "-c import ensurepip, venv") ENSUREPIP ;;
  "-m venv "*)
    echo "venv VERSION" >>"$CALLS"
    mkdir -p "$3/bin"
    cat "$0" >"$3/bin/python"
    chmod +x "$3/bin/python" ;;
  "-m pip install "*)
    echo "pip ${@: -1}" >>"$CALLS"
    . "$PIP" ;;
  "-c "*) exec REAL "$@" ;;
  *)
    printf '%s\n' "$PWD" "$@" >"$CALLS.main"
    . "$MAIN" ;;
esac
"""


class Project:
    """A copy of the launchers in a folder of its own, and a PATH on which only stand-ins can be found."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "the project"
        self.bin = folder / "bin"
        self.calls = folder / "calls.txt"
        self.pip = folder / "pip.sh"
        self.main = folder / "main.sh"
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, self.root / name)
        self.setup = self.root / "setup.cfg"
        shutil.copy(ROOT / "setup.cfg", self.setup)
        (self.root / "configs" / "example.py").write_text(
            "def get_config(options=None):\n    ...\n"
        )
        self.stamp = self.root / ".venv" / "functa.stamp"
        self.bin.mkdir()
        self.pip.touch()
        self.main.touch()
        for command in COMMANDS:
            (self.bin / command).symlink_to(shutil.which(command))
        self.add("id", "#!/bin/sh\necho 1000\n")

    def add(self, command, text):
        path = self.bin / command
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, command, version, ensurepip="true"):
        text = PYTHON.replace("VERSION", version).replace("ENSUREPIP", ensurepip)
        self.add(command, text.replace("REAL", sys.executable))

    def env(self, **extra):
        paths = {
            "PATH": str(self.bin),
            "CALLS": str(self.calls),
            "PIP": str(self.pip),
            "MAIN": str(self.main),
        }
        return {**paths, "HOME": str(self.folder), **extra}

    def start(self, script, *arguments, **extra):
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=self.env(**extra),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, script, *arguments, **extra):
        process = self.start(script, *arguments, **extra)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def called(self):
        """What venv and pip were asked for since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path)
    made.add_python("python3", "3.11")
    return made


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


# launch/environment.sh


def test_the_second_call_does_nothing_and_is_quick(project):
    first = project.run("environment.sh")
    assert first.returncode == 0
    assert "1.1 GB" in first.stderr
    assert project.called() == ["venv 3.11", "pip ."]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = project.run("environment.sh")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3  # seconds
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert project.called() == []


def test_extras_add_up(project):
    project.run("environment.sh")
    project.run("environment.sh", "test")
    project.run("environment.sh", "cuda")
    assert project.called() == ["venv 3.11", "pip .", "pip .[test]", "pip .[test,cuda]"]
    project.run("environment.sh")
    project.run("environment.sh", "test")
    assert project.called() == []
    result = project.run("environment.sh", "tests")
    assert result.returncode == 2
    assert "no extra 'tests'" in result.stderr


def test_a_changed_setup_is_installed_with_the_same_extras(project):
    project.run("environment.sh", "test")
    project.called()
    project.setup.write_text(project.setup.read_text() + "\n# changed\n")
    assert project.run("environment.sh").returncode == 0
    assert project.called() == ["pip .[test]"]


def test_another_python_makes_it_anew(project):
    project.run("environment.sh", "test")
    project.add_python("other", "3.12")
    assert project.run("environment.sh", FUNCTA_PYTHON="other").returncode == 0
    assert project.called() == ["venv 3.11", "pip .[test]", "venv 3.12", "pip ."]
    project.run("environment.sh")  # any Python will do now, and 3.12 is there
    assert project.called() == []


def test_a_moved_project_makes_it_anew(project):
    project.run("environment.sh")
    moved = project.folder / "moved"
    project.root.rename(moved)
    project.root = moved
    project.called()
    assert project.run("environment.sh").returncode == 0
    assert project.called() == ["venv 3.11", "pip ."]


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_killed_installation_is_not_taken_for_complete(project, upgrade):
    if upgrade:
        project.run("environment.sh")
        project.called()
    project.pip.write_text("kill -9 0")  # environment.sh, pip and whatever they started
    assert project.run("environment.sh", "test").returncode == -9
    assert not project.stamp.exists()
    (project.root / ".venv" / "half-installed").touch()
    project.pip.write_text("")
    project.called()
    assert project.run("environment.sh", "test").returncode == 0
    assert project.called() == ["venv 3.11", "pip .[test]"]
    assert not (project.root / ".venv" / "half-installed").exists()


def test_a_failed_installation_shows_the_end_of_the_log(project):
    project.pip.write_text(
        "for i in {1..50}; do echo line $i; done; echo no such package >&2; exit 1"
    )
    result = project.run("environment.sh")
    assert result.returncode == 1
    assert "no such package" in result.stderr
    assert "line 50" in result.stderr
    assert "line 9\n" not in result.stderr
    assert ".venv/install.log" in result.stderr
    assert not project.stamp.exists()


def test_calls_at_once_install_once(project):
    project.pip.write_text('until [ -e "$CALLS.go" ]; do sleep 0.05; done')
    calls = [project.start("environment.sh")]
    while not (project.calls.exists() and "pip ." in project.calls.read_text()):
        assert calls[0].poll() is None
        time.sleep(0.05)
    calls += [project.start("environment.sh") for _ in range(2)]
    for call in calls[1:]:
        assert "waiting for another installation" in call.stderr.readline()
    (project.folder / "calls.txt.go").touch()
    for call in calls:
        call.communicate(timeout=60)
    assert [call.returncode for call in calls] == [0, 0, 0]
    assert project.called() == ["venv 3.11", "pip ."]


def test_a_foreign_venv_is_left_alone(project):
    theirs = project.root / ".venv" / "theirs"
    theirs.parent.mkdir()
    theirs.touch()
    result = project.run("environment.sh")
    assert result.returncode == 2
    assert "was not made by" in result.stderr
    assert theirs.exists()


def test_an_activated_venv_is_not_used_to_make_itself(project):
    project.run("environment.sh")
    project.stamp.unlink()
    shutil.copy(
        project.root / ".venv" / "bin" / "python", project.root / ".venv" / "bin" / "python3.12"
    )
    path = f"{project.root}/.venv/bin:{project.bin}"
    result = project.run("environment.sh", PATH=path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "3.13"}, "3.13"),
        ({"python3": "3.10", "python3.11": "3.11", "python3.12": "3.12"}, "3.12"),
        ({"python3": "3.14", "python3.11": "3.11"}, "3.11"),
    ],
)
def test_the_python_that_is_chosen(project, pythons, chosen):
    for command, version in pythons.items():
        project.add_python(command, version)
    project.run("environment.sh")
    assert project.called()[0] == f"venv {chosen}"


def test_a_python_that_can_make_venvs_comes_first(project):
    project.add_python("python3.12", "3.12", ensurepip="false")
    project.add("python3.11", "#!/bin/sh\nexit 127\n")  # there, but it does not run
    project.run("environment.sh")
    assert project.called()[0] == "venv 3.11"


@pytest.mark.parametrize("version", ["3.10", "3.14", ""])
def test_no_python_that_will_do(project, version):
    project.add_python("python3", version)
    if not version:
        (project.bin / "python3").unlink()
    result = project.run("environment.sh")
    assert result.returncode == 2
    assert "apt-get install -y python3 python3-venv" in result.stderr
    assert "FUNCTA_PYTHON=" in result.stderr
    assert not (project.root / ".venv").exists()


def test_a_named_python_that_will_not_do(project):
    project.add_python("old", "3.9")
    result = project.run("environment.sh", FUNCTA_PYTHON="old")
    assert result.returncode == 2
    assert "FUNCTA_PYTHON=old is Python 3.9; Python 3.11" in result.stderr
    result = project.run("environment.sh", FUNCTA_PYTHON="/no/such")
    assert result.returncode == 2
    assert "FUNCTA_PYTHON=/no/such does not run" in result.stderr


@pytest.mark.parametrize("apt", [False, True])
def test_without_ensurepip_the_exact_command_is_named(project, apt):
    """Neither root nor sudo: the person has to do it."""
    project.add_python("python3", "3.11", ensurepip="false")
    if apt:
        project.add("apt-get", "#!/bin/sh\ntouch $CALLS.apt\n")
    result = project.run("environment.sh")
    assert result.returncode == 2
    assert "As root: apt-get update && apt-get install -y python3.11-venv\n" in result.stderr
    assert project.called() == []
    assert not (project.folder / "calls.txt.apt").exists()


@pytest.mark.parametrize("root", [True, False])
def test_without_ensurepip_it_is_installed_if_that_is_allowed(project, root):
    project.add_python("python3", "3.11", ensurepip='[ -e "$CALLS.apt" ]')
    project.add("apt-get", '#!/bin/sh\necho "$DEBIAN_FRONTEND $*" >>"$CALLS.apt"\n')
    if root:
        project.add("id", "#!/bin/sh\necho 0\n")
    else:
        project.add("true", "#!/bin/sh\n")
        project.add("sudo", '#!/bin/sh\nshift\necho sudo >>"$CALLS.apt.sudo"\nexec "$@"\n')
    result = project.run("environment.sh")
    assert result.returncode == 0, result.stderr
    lines = (project.folder / "calls.txt.apt").read_text().splitlines()
    assert lines[0] == "noninteractive -qq update"
    assert re.fullmatch(r"noninteractive -qq .*install -y python3.11-venv", lines[1])
    assert (project.folder / "calls.txt.apt.sudo").exists() != root
    assert project.called() == ["venv 3.11", "pip ."]


def test_a_package_that_cannot_be_installed(project):
    project.add_python("python3", "3.11", ensurepip="false")
    project.add("id", "#!/bin/sh\necho 0\n")
    project.add("apt-get", "#!/bin/sh\necho E: no network; exit 100\n")
    result = project.run("environment.sh")
    assert result.returncode == 1
    assert "E: no network" in result.stderr
    assert "apt-get install -y python3.11-venv" in result.stderr


# launch/local.sh


def test_local_starts_main_with_the_config_and_the_arguments_as_they_are(project):
    arguments = ("--workdir=my runs/one", "--config.field.width=128")
    result = project.run("local.sh", "example:8x8x16,tiny", *arguments)
    assert result.returncode == 0, result.stderr
    config = f"--config={project.root}/configs/example.py:8x8x16,tiny"
    assert (project.folder / "calls.txt.main").read_text().splitlines() == [
        str(project.folder),  # a relative --workdir is the caller's
        *("-P", "-m", "functa.main", config),
        *arguments,
    ]
    assert project.called() == ["venv 3.11", "pip ."]


def test_local_passes_the_exit_status_and_the_extra_on(project):
    project.main.write_text("exit 7")
    assert project.run("local.sh", "example", FUNCTA_EXTRA="cuda").returncode == 7
    assert project.called() == ["venv 3.11", "pip .[cuda]"]


@pytest.mark.parametrize("name", ["exampel", "common", "example.py", "configs/example.py", ""])
def test_local_lists_the_configs_for_an_unknown_name(project, name):
    result = project.run("local.sh", name)
    assert result.returncode == 2
    assert f"there is no config '{name}'" in result.stderr
    assert "\n  example\n" in result.stderr
    assert "common" not in result.stderr.partition("the configs are")[2]
    assert project.called() == []


@pytest.mark.parametrize("argument", ["--proceses=2", "--config=x.py", "--workdir", "width=3"])
def test_local_refuses_what_it_does_not_know(project, argument):
    result = project.run("local.sh", "example", argument, "2")
    assert result.returncode == 2
    assert f"unknown argument '{argument}'" in result.stderr
    assert "--workdir=DIR" in result.stderr
    assert project.called() == []


@pytest.mark.parametrize(
    ("argument", "want"),
    [
        *((argument, "a number") for argument in ("--processes=0", "--processes=two")),
        *((argument, "a number") for argument in ("--restart=-1", "--restart=", "--restart=08")),
        ("--devices=0", "a multiple of the 1 processes"),
        ("--devices=2.5", "a multiple of the 1 processes"),
    ],
)
def test_local_refuses_numbers_that_mean_nothing(project, argument, want):
    result = project.run("local.sh", "example", argument)
    assert result.returncode == 2
    assert f"{argument}: want {want}" in result.stderr
    result = project.run("local.sh", "example", "--processes=2", "--devices=3")
    assert result.returncode == 2
    assert "--devices=3: want a multiple of the 2 processes" in result.stderr
    result = project.run("local.sh", "example", "--processes")
    assert result.returncode == 2
    assert "--processes needs a number" in result.stderr


def test_local_starts_processes_that_find_each_other(project):
    project.main.write_text(
        'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; taskset -cp $$'
    )
    result = project.run("local.sh", "example:tiny", "--processes", "2", "--config.seed=1")
    assert result.returncode == 0, result.stderr
    logs = [project.folder / f"runs/example-tiny.logs/process-{k}.log" for k in range(2)]
    first, second = (log.read_text().splitlines() for log in logs)
    assert result.stdout.splitlines() == first  # process 0 is shown, and only it
    assert re.fullmatch(r"0 of 2 at 127\.0\.0\.1:\d+", first[0])
    assert second[0] == first[0].replace("0 of", "1 of", 1)
    if len(os.sched_getaffinity(0)) > 1:
        assert first[1].split(":")[1] != second[1].split(":")[1]
    assert "--config.seed=1" in (project.folder / "calls.txt.main").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_local_divides_devices_but_not_threads(project, processes):
    """What makes the numbers of any number of processes the same."""
    project.main.write_text('echo "$JAX_NUM_CPU_DEVICES of $NPROC"')
    result = project.run("local.sh", "example:tiny", f"--processes={processes}", "--devices", "4")
    assert result.stdout.splitlines() == [f"{4 // processes} of 8"]
    result = project.run("local.sh", "example:tiny", f"--processes={processes}")
    assert result.stdout.splitlines() == [" of "]


def test_local_ends_with_the_status_of_the_process_that_failed(project):
    project.main.write_text('[ "$JAX_PROCESS_ID" = 0 ] || exit 7; sleep 1; exit 1')
    result = project.run("local.sh", "example", "--processes=3", "--workdir=my runs/one")
    assert result.returncode == 7
    assert "of 3 ended with status 7, see my runs/one.logs/process-" in result.stderr


@pytest.mark.slow
def test_local_kills_what_does_not_end_by_itself(project):
    project.main.write_text('[ "$JAX_PROCESS_ID" = 0 ] || exit 7; exec sleep 100')
    begin = time.monotonic()
    assert project.run("local.sh", "example", "--processes=2").returncode == 7
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("processes", [1, 2])
def test_local_starts_again_after_a_failure(project, processes):
    project.main.write_text('echo "try $JAX_PROCESS_ID" >>"$CALLS.tries"; exit 3')
    several = f"--processes={processes}"
    assert project.run("local.sh", "example", several, "--restart=2").returncode == 3
    tries = (project.folder / "calls.txt.tries").read_text().splitlines()
    assert len(tries) == 3 * processes
    project.main.write_text('echo "try $JAX_PROCESS_ID" >>"$CALLS.tries"; exit 2')
    assert project.run("local.sh", "example", several, "--restart=2").returncode == 2
    tries = (project.folder / "calls.txt.tries").read_text().splitlines()
    assert len(tries) == 4 * processes  # what must be mended first is not tried again


def test_local_hands_sigterm_on(project):
    project.main.write_text(
        'trap "echo saved; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    )
    process = project.start("local.sh", "example", "--processes=2", "--restart=3")
    logs = [project.folder / f"runs/example.logs/process-{k}.log" for k in range(2)]
    deadline = time.monotonic() + 20
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert all("saved" in log.read_text() for log in logs)


def test_local_help(project):
    result = project.run("local.sh", "--help")
    assert result.returncode == 0
    assert "usage: launch/local.sh NAME[:OPTIONS]" in result.stdout
    assert "\n  example\n" in result.stdout
    result = project.run("local.sh")
    assert result.returncode == 2
    assert "usage:" in result.stderr


# launch/explore.sh


def test_explore_installs_what_serves_the_page_and_starts_it(project):
    (project.folder / "my runs").mkdir()
    arguments = ("my runs", "--port", "7000", "--data-dir=my data")
    result = project.run("explore.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert (project.folder / "calls.txt.main").read_text().splitlines() == [
        str(project.folder),  # a relative run is the caller's
        *(
            "-P",
            "-m",
            "functa.cli",
            "explore",
            "--port=7000",
            "--data-dir=my data",
            "--",
            "my runs",
        ),
    ]
    assert project.called() == ["venv 3.11", "pip .[explore]"]
    project.main.write_text("exit 7")
    assert project.run("explore.sh", "my runs").returncode == 7
    assert (project.folder / "calls.txt.main").read_text().splitlines()[1:] == [
        *("-P", "-m", "functa.cli", "explore", "--", "my runs"),
    ]
    assert project.called() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given; usage: launch/explore.sh RUN"),
        (["configs", "launch"], "one run at a time, not configs and launch"),
        (["no/such"], "no run directory no/such; list yours with: ls runs"),
        (["configs", "--prot=7000"], "unknown option --prot=7000"),
        (["configs", "--port"], "--port needs a value"),
    ],
)
def test_explore_refuses_before_it_installs(project, arguments, message):
    for name in ("configs", "launch"):
        (project.folder / name).mkdir()
    result = project.run("explore.sh", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert project.called() == []
    result = project.run("explore.sh", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: launch/explore.sh RUN" in result.stdout
