"""A fake Cloud TPU with two workers. Processes, files and signals are real."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.support import launchers

COMMANDS = (
    *("cp", "git", "gzip", "head", "hostname", "mktemp", "nice", "sha256sum"),
    *("sort", "tar", "touch", "tr", "true", "wc"),
)

# A fake gcloud. Each worker is a folder, its HOME. The files `state` and `queued` contain the states of
# the TPU and of its request, which is fulfilled after two calls of describe. A command of a worker runs
# in its own session. When the state is no longer READY, all processes of the TPU are killed.
GCLOUD = r"""
import json, os, pathlib, shutil, signal, socket, subprocess, sys, time

cloud = pathlib.Path(os.environ["CLOUD"])
words = sys.argv[1:]
with (cloud / "calls").open("a") as file:
    print(json.dumps(words), file=file)
flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
if words[:2] == ["storage", "ls"]:
    sys.exit((cloud / "no data").exists())
assert words[:2] == ["compute", "tpus"] and flags["--zone"] == "z" and flags["--project"] == "p", words
kind, verb, *names = [word for word in words[2:] if not word.startswith("--")]


def get(name):
    path = cloud / name
    return path.read_text() if path.exists() else None


def fail(message, status=1):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(status)


def describe():
    if get("broken"):
        fail("UNAUTHENTICATED: log in first")
    if kind == "queued-resources":
        if get("queued") is None:
            fail("NOT_FOUND: Resource was not found")
        print(get("queued"))
        if get("queued") == "WAITING_FOR_RESOURCES":
            (cloud / "queued").write_text("PROVISIONING")
        elif get("queued") == "PROVISIONING":
            new(get("type"))
            (cloud / "queued").write_text("ACTIVE")
        return
    if get("state") is None:
        fail("NOT_FOUND: Resource was not found")
    values = {"value(state)": get("state"), "value(acceleratorType)": get("type")}
    values |= {"value(runtimeVersion)": get("version"), "value(networkEndpoints.len())": "2"}
    print(values[flags["--format"]])


def new(type):
    (cloud / "state").write_text("READY")
    for k in range(2):
        shutil.rmtree(cloud / str(k), ignore_errors=True)
        (cloud / str(k)).mkdir()


def create():
    if get("queued") is not None or get("state") is not None:
        fail("ALREADY_EXISTS")
    (cloud / "type").write_text(flags["--accelerator-type"])
    (cloud / "version").write_text(flags["--runtime-version"])
    (cloud / "queued").write_text("WAITING_FOR_RESOURCES")


def delete():
    if kind == "queued-resources":
        assert "--force" in words
        (cloud / "queued").unlink()
    (cloud / "state").unlink(missing_ok=True)


def scp():
    if get("state") != "READY":
        fail("not READY")
    *files, target = names
    assert target == "pod:" and flags["--worker"] == "all"
    for k in range(2):
        for file in files:
            shutil.copy(file, cloud / str(k))
            if get("cut") == str(k):
                os.truncate(cloud / str(k) / pathlib.Path(file).name, 1000)


def ssh():
    if get("state") != "READY":
        fail("not READY", 255)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    workers = range(2) if flags["--worker"] == "all" else [int(flags["--worker"])]
    processes = []
    for k in workers:
        home = str(cloud / str(k))
        env = json.loads(get("env")) | {"HOME": home, "CALLS": f"{home}/calls.txt", "WORKER": str(k)}
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
        env |= {"JAX_PROCESS_ID": str(k)}
        command = ["bash", "-c", flags["--command"]]
        processes.append(subprocess.Popen(command, env=env, cwd=home, start_new_session=True))
        with (cloud / "sessions").open("a") as file:
            print(processes[-1].pid, file=file)
    while any(process.poll() is None for process in processes):
        if get("state") != "READY":
            for process in processes:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            fail("connection lost", 255)
        time.sleep(0.02)
    sys.exit(next((255 if p.returncode < 0 else p.returncode for p in processes if p.returncode), 0))


{"describe": describe, "create": create, "delete": delete, "scp": scp, "ssh": ssh}[verb]()
"""

# Default functa.main of a worker.
MAIN = 'echo "worker $WORKER has run"\n'


class Cloud:
    """A copy of the launchers in a git checkout, and a PATH with the fake gcloud."""

    def __init__(self, folder):
        self.project = launchers.Project(folder)
        self.project.add_python("python3", "3.11")
        for command in COMMANDS:
            link = self.project.bin / command
            if not link.exists():
                link.symlink_to(shutil.which(command))
        self.project.add("gcloud", f"#!{sys.executable} -SE\n{GCLOUD}")
        self.folder = folder / "cloud"
        self.folder.mkdir()
        self.main(MAIN)
        self.env()
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git(*("-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--message=all"))

    def git(self, *words):
        subprocess.run(["git", *words], cwd=self.project.root, check=True)

    def main(self, text):
        self.project.main.write_text(f'echo "$WORKER" >>"{self.folder}/starts"\n{text}')

    def env(self, **more):
        """Sets the environment of the workers."""
        names = ("PATH", "PIP", "MAIN")
        env = {name: self.project.env()[name] for name in names}
        (self.folder / "env").write_text(json.dumps(env | more))

    def ready(self):
        """Creates the TPU."""
        for name, text in {"state": "READY", "type": "v5litepod-16", "version": "v2"}.items():
            (self.folder / name).write_text(text)
        for k in range(2):
            (self.folder / str(k)).mkdir()

    def arguments(self, words, without, env):
        variables = {
            "TPU_NAME": "pod",
            "ZONE": "z",
            "PROJECT": "p",
            "WORKDIR": "gs://bucket/the run",
        }
        variables |= {"TMPDIR": str(self.folder)}
        variables |= {"CLOUD": str(self.folder), "POLL_SECONDS": "0.05", "GRACE_SECONDS": "0"} | env
        return ("tpu_pod.sh", *words), {k: v for k, v in variables.items() if k not in without}

    def start(self, *words, without=(), **env):
        words, env = self.arguments(words, without, env)
        return self.project.start(*words, **env)

    def run(self, *words, without=(), **env):
        words, env = self.arguments(words, without, env)
        return self.project.run(*words, **env)

    def calls(self):
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, *words):
        """Number of gcloud calls that start with these words."""
        return sum(call[2 : 2 + len(words)] == list(words) for call in self.calls())

    def starts(self):
        path = self.folder / "starts"
        return sorted(path.read_text().split()) if path.exists() else []

    def log(self, worker):
        path = self.folder / str(worker) / "functa.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, process, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"timeout:\n{process.communicate()}")
            time.sleep(0.02)

    def end(self):
        """Kills processes that a failed test has left on the workers."""
        sessions = self.folder / "sessions"
        for pid in sessions.read_text().split() if sessions.exists() else []:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
