"""A copy of the launchers with fake programs in place of Python, pip and functa.main."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = (
    *("bash", "cat", "chmod", "dirname", "env", "find", "flock", "grep"),
    *("basename", "id", "ls", "mkdir", "mv", "rm", "sed", "seq", "sleep", "tail", "taskset"),
)

# Arguments with characters that are special in shells.
HARD_ARGUMENTS = ('--config.note=it\'s "so" $HOME * \\', "--config.other=  two  ")

# A fake Python. VERSION and ENSUREPIP are replaced. `-m venv` copies the fake to the environment. `pip
# install` appends its last argument to calls.txt and runs pip.sh. functa.main writes its working
# directory and arguments to calls.txt.main and runs main.sh.
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
  "-P -m functa.cli plan --check "*)
    echo "check ${*:6}" >>"$CALLS"
    exit "${CHECK_STATUS:-0}" ;;
  *)
    printf '%s\n' "$PWD" "$@" >"$CALLS.main"
    . "$MAIN" ;;
esac
"""


class Project:
    """A copy of the launchers, and a PATH with the fake programs and COMMANDS only."""

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
            'def get_config(options=None):\n    config.data.update(source="digits")\n'
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

    def main_arguments(self):
        """Working directory and arguments of the last functa.main."""
        return self.calls.with_name("calls.txt.main").read_text().splitlines()

    def called(self):
        """Calls of venv and pip since the last call of this method."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines
