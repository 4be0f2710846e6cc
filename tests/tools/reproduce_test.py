"""tools/experiments/reproduce_cifar10.sh with a stand-in for the launcher, and the table it ends with."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from functa.configs import cifar10_functa, cifar10_spatial
from functa.pipeline import validation
from tests.conftest import ROOT

# Writes what a complete run leaves; NAME:OPTIONS and --workdir=DIR are its first two arguments.
LAUNCHER = r"""#!/usr/bin/env bash
echo "$*" >>"$CALLS"
# As functa does: the first SIGTERM is a request to save, a second ends the program at once.
if [ "${WAIT:-}" ]; then
  trap 'trap - TERM; kill %1; sleep 0.3; echo saved >>"$CALLS.saved"; exit 0' TERM
  sleep "$WAIT" &
  wait
fi
if [ "${STATUS:-}" ]; then exit "$STATUS"; fi
options="${1#*:}"
shape="${options%%,*}"
workdir="${2#--workdir=}"
mkdir -p "$workdir/meta_learn" "$workdir/classify" "$workdir/generate"
echo "{\"field\": {\"latent_shape\": [${shape//x/, }], \"interpolation\": \"nearest\", \"map\": \"linear\", \
\"width\": 64, \"upsampling\": 2}, \"meta_learn\": {\"batch_size\": 8}}" >"$workdir/config.json"
echo '{"psnr": 38.125, "pca_psnr": 34.5, "steps": 4000, "test_images": 10000}' >"$workdir/meta_learn/metrics.json"
echo '{"accuracy": 0.8125}' >"$workdir/classify/metrics.json"
echo '{"frechet_distance": 1.25, "frechet_gaussian": 4.5, "frechet_features": "cnn"}' \
  >"$workdir/generate/metrics.json"
"""
ORDER = ["8x8x16", "4x4x64", "1x1x256", "1x1x512", "1x1x1024"]


@pytest.fixture
def project(tmp_path):
    for folder in ("tools/experiments", "launch", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("reproduce_cifar10.sh", "cifar10_table.py"):
        shutil.copy(ROOT / "tools/experiments" / name, tmp_path / "tools/experiments")
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    launcher = tmp_path / "launch/local.sh"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return tmp_path


def run(project, *arguments, **env):
    return subprocess.run(
        [project / "tools/experiments/reproduce_cifar10.sh", *arguments], cwd=project,
        env={"PATH": "/usr/bin:/bin", "CALLS": str(project / "calls"), **env},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_all_runs_once_then_the_table(project):
    result = run(project, "--preset=two_core", "--data_dir=/d")
    assert result.returncode == 0, result.stderr
    calls = (project / "calls").read_text().splitlines()
    assert [call.split()[0].partition(":")[2].split(",")[0] for call in calls] == ORDER
    assert all(",two_core --workdir=runs/cifar10/" in call for call in calls)
    assert all(call.endswith("--config.data.data_dir=/d") for call in calls)
    table = [line.split("|") for line in result.stdout.splitlines()]
    assert len(table) == 2 + len(ORDER)
    ours = {row[1].strip(): [cell.strip() for cell in row[3:-1]] for row in table[2:]}
    assert ours["8x8x16"] == [
        "4000 x 8, 10000 test images",
        "38.12",
        "81.25",
        "1.25 (4.50), cnn",
        "34.50",
        "39.00",
        "90.30",
        "33.10",
        "",
    ]
    assert ours["1x1x512"][-2:] == ["31.62", "67.20"]
    again = run(project, "--preset=two_core")
    assert again.stdout == result.stdout
    assert (project / "calls").read_text().splitlines() == calls
    run(project)  # the default preset has runs of its own
    assert len((project / "calls").read_text().splitlines()) == 2 * len(ORDER)


def test_a_slice_ends_in_time_and_the_next_goes_on(project):
    first = run(project, "--seconds=1", WAIT="30")
    assert first.returncode == 75, first.stderr
    assert len((project / "calls").read_text().splitlines()) == 1
    assert (project / "calls.saved").read_text() == "saved\n"
    second = run(project, "--seconds=50")
    assert second.returncode == 0, second.stderr
    assert len((project / "calls").read_text().splitlines()) == 1 + len(ORDER)


def test_a_signal_is_passed_on_and_waited_for(project):
    command = [project / "tools/experiments/reproduce_cifar10.sh"]
    env = {"PATH": "/usr/bin:/bin", "CALLS": str(project / "calls"), "WAIT": "30"}
    program = subprocess.Popen(command, cwd=project, env=env)
    while not (project / "calls").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    program.terminate()
    assert program.wait(timeout=10) == 75
    assert (project / "calls.saved").read_text() == "saved\n"


def test_a_run_that_fails_stops_with_its_status(project):
    assert run(project, STATUS="2").returncode == 2
    assert run(project, "--seconds=50", STATUS="1").returncode == 1
    assert len((project / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize("argument", ["--preset=big", "--seconds=ten", "--seconds=", "fast"])
def test_bad_arguments_are_refused(project, argument):
    result = run(project, argument)
    assert result.returncode == 2
    assert "usage: tools/experiments/reproduce_cifar10.sh" in result.stderr


def test_a_table_of_nothing_is_refused(project):
    command = [sys.executable, "-m", "tools.experiments.cifar10_table", project]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "holds no run" in result.stderr


def test_a_field_without_a_classifier_has_a_row(project):
    run(project)
    metrics = project / "runs/cifar10/cifar10_functa-1x1x256-one_gpu/classify/metrics.json"
    metrics.unlink()
    (metrics.parent.parent / "generate/metrics.json").unlink()
    command = [sys.executable, "-m", "tools.experiments.cifar10_table", project / "runs/cifar10"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (row,) = [line for line in result.stdout.splitlines() if "1x1x256" in line]
    assert [cell.strip() for cell in row.split("|")[4:8]] == ["38.12", "", "", "34.50"]
    assert json.loads((metrics.parent.parent / "meta_learn/metrics.json").read_text())["psnr"]


@pytest.mark.parametrize("preset", ["one_gpu", "two_core", "tiny"])
@pytest.mark.parametrize("shape", ORDER)
def test_every_preset_it_runs_has_no_fault(preset, shape):
    experiment = cifar10_functa if shape.startswith("1x1") else cifar10_spatial
    config = experiment.get_config(f"{shape},{preset}")
    assert validation.validate(config, None, stages=config.stages) == []
