"""launch/environment.sh with fake programs: what it installs, when, and with which Python."""

import os
import re
import shutil
import subprocess
import time

import pytest

from tests.support.launchers import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_second_call_does_nothing(project):
    assert project.run("environment.sh").returncode == 0
    assert project.called() == ["venv 3.11", "pip ."]
    second = project.run("environment.sh")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert project.called() == []


def test_extras_accumulate(project):
    for extra in ("", "test", "cuda"):
        project.run("environment.sh", extra)
    assert project.called() == ["venv 3.11", "pip .", "pip .[test]", "pip .[test,cuda12]"]
    project.run("environment.sh", "test")
    assert project.called() == []
    result = project.run("environment.sh", "tests")
    assert result.returncode == 2
    assert "'tests'" in result.stderr


@pytest.mark.parametrize(
    ("driver", "extra"), [("570.86", "cuda12"), ("580.65.06", "cuda13"), ("no devices", "cuda12")]
)
def test_cuda_is_chosen_by_the_driver(project, driver, extra):
    project.add("nvidia-smi", f"#!/bin/sh\necho '{driver}'\necho '{driver}'\n")
    project.run("environment.sh", "cuda")
    assert project.called() == ["venv 3.11", f"pip .[{extra}]"]


def test_a_changed_setup_is_installed_with_the_same_extras(project):
    project.run("environment.sh", "test")
    project.called()
    project.setup.write_text(project.setup.read_text() + "\n# changed\n")
    assert project.run("environment.sh").returncode == 0
    assert project.called() == ["pip .[test]"]


def test_another_python_replaces_the_environment(project):
    project.run("environment.sh", "test")
    project.add_python("other", "3.12")
    assert project.run("environment.sh", FUNCTA_PYTHON="other").returncode == 0
    assert project.called() == ["venv 3.11", "pip .[test]", "venv 3.12", "pip ."]
    project.run("environment.sh")  # without FUNCTA_PYTHON 3.12 remains
    assert project.called() == []


def test_a_moved_project_replaces_the_environment(project):
    project.run("environment.sh")
    moved = project.folder / "moved"
    project.root.rename(moved)
    project.root = moved
    project.called()
    assert project.run("environment.sh").returncode == 0
    assert project.called() == ["venv 3.11", "pip ."]


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_killed_installation_is_repeated(project, upgrade):
    if upgrade:
        project.run("environment.sh")
        project.called()
    project.pip.write_text("kill -9 0")  # the process group
    assert project.run("environment.sh", "test").returncode == -9
    assert not project.stamp.exists()
    leftover = project.root / ".venv" / "half-installed"
    leftover.touch()
    project.pip.write_text("")
    project.called()
    assert project.run("environment.sh", "test").returncode == 0
    assert project.called() == ["venv 3.11", "pip .[test]"]
    assert not leftover.exists()


def test_a_failed_installation_shows_the_end_of_the_log(project):
    project.pip.write_text("for i in {1..50}; do echo line $i; done; exit 1")
    result = project.run("environment.sh")
    assert result.returncode == 1
    assert "line 50" in result.stderr
    assert "line 9\n" not in result.stderr
    assert ".venv/install.log" in result.stderr
    assert not project.stamp.exists()


def test_concurrent_calls_install_once(project):
    project.pip.write_text('until [ -e "$CALLS.go" ]; do sleep 0.05; done')
    calls = [project.start("environment.sh")]
    while not (project.calls.exists() and "pip ." in project.calls.read_text()):
        assert calls[0].poll() is None
        time.sleep(0.05)
    calls += [project.start("environment.sh") for _ in range(2)]
    for call in calls[1:]:
        assert "waiting" in call.stderr.readline()
    (project.folder / "calls.txt.go").touch()
    for call in calls:
        call.communicate(timeout=60)
    assert [call.returncode for call in calls] == [0, 0, 0]
    assert project.called() == ["venv 3.11", "pip ."]


def test_another_venv_is_not_touched(project):
    other = project.root / ".venv" / "other"
    other.parent.mkdir()
    other.touch()
    assert project.run("environment.sh").returncode == 2
    assert other.exists()


def test_an_activated_venv_does_not_create_itself(project):
    project.run("environment.sh")
    project.stamp.unlink()
    bin = project.root / ".venv" / "bin"
    shutil.copy(bin / "python", bin / "python3.12")
    result = project.run("environment.sh", PATH=f"{bin}:{project.bin}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "3.13"}, "3.13"),
        ({"python3": "3.10", "python3.11": "3.11", "python3.12": "3.12"}, "3.12"),
        ({"python3": "3.14", "python3.11": "3.11"}, "3.11"),
    ],
)
def test_the_newest_supported_python_is_used(project, pythons, chosen):
    for command, version in pythons.items():
        project.add_python(command, version)
    project.run("environment.sh")
    assert project.called()[0] == f"venv {chosen}"


def test_a_python_that_can_create_venvs_is_preferred(project):
    project.add_python("python3.12", "3.12", ensurepip="false")
    project.add("python3.11", "#!/bin/sh\nexit 127\n")  # exists but does not run
    project.run("environment.sh")
    assert project.called()[0] == "venv 3.11"


@pytest.mark.parametrize("version", ["3.10", "3.14", ""])
def test_a_missing_python_is_reported(project, version):
    project.add_python("python3", version)
    if not version:
        (project.bin / "python3").unlink()
    result = project.run("environment.sh")
    assert result.returncode == 2
    assert "FUNCTA_PYTHON=" in result.stderr
    assert not (project.root / ".venv").exists()


@pytest.mark.parametrize("python", ["old", "/no/such"])
def test_an_unsuitable_functa_python_is_refused(project, python):
    project.add_python("old", "3.9")
    result = project.run("environment.sh", FUNCTA_PYTHON=python)
    assert result.returncode == 2
    assert f"FUNCTA_PYTHON={python}" in result.stderr


@pytest.mark.parametrize("apt", [False, True])
def test_without_root_the_missing_package_is_named(project, apt):
    project.add_python("python3", "3.11", ensurepip="false")
    if apt:
        project.add("apt-get", "#!/bin/sh\ntouch $CALLS.apt\n")
    result = project.run("environment.sh")
    assert result.returncode == 2
    assert "apt-get install -y python3.11-venv\n" in result.stderr
    assert project.called() == []
    assert not (project.folder / "calls.txt.apt").exists()


@pytest.mark.parametrize("root", [True, False])
def test_with_root_or_sudo_the_missing_package_is_installed(project, root):
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


def test_a_failure_of_apt_is_shown(project):
    project.add_python("python3", "3.11", ensurepip="false")
    project.add("id", "#!/bin/sh\necho 0\n")
    project.add("apt-get", "#!/bin/sh\necho E: no network; exit 100\n")
    result = project.run("environment.sh")
    assert result.returncode == 1
    assert "E: no network" in result.stderr
