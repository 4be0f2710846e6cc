"""launch/dashboard.sh: arguments, and TensorBoard serving runs."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from functa.training.tensorboard import CHARTS
from tests.training.tensorboard_test import write_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "dashboard.sh"


def launch(*arguments, path=None):
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given"),
        (["missing/run"], "no run directory missing/run"),
        ([".", "missing/run"], "no run directory missing/run"),
        ([".", "--port"], "--port needs a number"),
        ([".", "--port", "0"], "--port 0: a port is a whole number"),
        ([".", "--port=65536"], "--port 65536: a port is a whole number"),
        ([".", "--prot", "1"], "unknown option --prot"),
    ],
)
def test_wrong_arguments_are_rejected(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_arguments_of_tensorboard(tmp_path):
    """A program on the PATH in place of TensorBoard prints its arguments."""
    root = tmp_path / "project"
    (root / "launch").mkdir(parents=True)
    script = root / "launch" / "dashboard.sh"
    script.write_bytes(SCRIPT.read_bytes())
    script.chmod(0o755)
    runs = [tmp_path / "a b", tmp_path / "c", tmp_path / "more" / "c", tmp_path / "d,e"]
    for run in runs:
        run.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "tensorboard"

    def call(*arguments):
        done = subprocess.run(
            [script, *arguments],
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    status, _, error = call(runs[0])
    assert status == 2
    assert "no tensorboard in" in error
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    local = ["--host", "127.0.0.1"]
    assert call(runs[0])[1] == [*local, "--logdir", str(runs[0])]
    assert call(runs[3])[1] == [*local, "--logdir", str(runs[3])]
    two = f"a b:{runs[0]},c:{runs[1]}"
    assert call(f"{runs[0]}/", runs[1], "--port", "81")[1] == [
        *(*local, "--logdir_spec", two),
        *("--port", "81"),
    ]
    alike = f"{runs[1]}:{runs[1]},{runs[2]}:{runs[2]}"
    assert call(runs[1], runs[2])[1] == [*local, "--logdir_spec", alike]
    status, _, error = call(runs[0], runs[3])
    assert status == 2
    assert "comma or colon" in error
    (root / ".venv" / "bin").mkdir(parents=True)
    fake.rename(root / ".venv" / "bin" / "tensorboard")
    assert call(runs[0])[1] == [*local, "--logdir", str(runs[0])]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_tensorboard_serves_the_runs(tmp_path, runs):
    for run in range(runs):
        write_run(tmp_path / f"run{run}" / "meta_learn", 0, 10, 1.0)
        write_run(tmp_path / f"run{run}" / "meta_learn", 4, 8, 2.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [tmp_path / f"run{run}" for run in range(runs)]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    # The script execs TensorBoard, so that ending its process ends TensorBoard.
    process = subprocess.Popen(
        [SCRIPT, *folders, "--port", str(port)],
        env={**os.environ, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = "meta_learn" if runs == 1 else "run1/meta_learn"

    def fetch(address):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{address}", timeout=30) as page:
            return json.load(page)

    def until(ready, seconds=60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert process.poll() is None
            try:
                if result := ready():
                    return result
            except OSError:  # not listening yet
                time.sleep(0.2)
            time.sleep(0.1)
        return pytest.fail("TensorBoard did not answer")

    def curve():
        query = urllib.parse.urlencode({"run": name, "tag": "meta_learn/loss"})
        if "meta_learn/loss" in fetch("plugin/scalars/tags").get(name, {}):
            points = fetch(f"plugin/scalars/scalars?{query}")
            return points if points[-1][1:] == [8, 2.0] else None
        return None

    try:
        points = until(curve)
        assert [point[1:] for point in points] == [[2, 1.0], [4, 1.0], [6, 2.0], [8, 2.0]]
        layout = fetch("plugin/custom_scalars/layout")
        assert [category["title"] for category in layout["category"]] == [
            f"meta_learn: {category}" for category in CHARTS["meta_learn"]
        ]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    with pytest.raises(OSError, match="refused"):
        fetch("runs")
