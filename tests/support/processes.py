"""Real processes of one run on this machine."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests.conftest import ROOT


class Processes:
    """`count` processes of one command, as a context manager that kills those still running.

    Args:
      arguments: of Python; a list for every process, or one for all.
      devices: simulated CPU devices of each process; a list, or one number for all.
      coordinator: HOST:PORT of process 0; by default a free port of this machine.
      inside: command of each process that starts Python, such as `ip netns exec`.
    """

    def __init__(
        self,
        arguments: Sequence,
        *,
        count: int,
        folder: pathlib.Path,
        env: dict[str, str],
        devices: int | Sequence[int] = 1,
        coordinator: str = "",
        inside: Sequence[Sequence[str]] = (),
    ):
        if not coordinator:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(arguments[0], str):
            arguments = [arguments] * count
        devices = [devices] * count if isinstance(devices, int) else devices
        self.logs = [folder / f"process-{k}.log" for k in range(count)]
        self.processes = []
        for index, (log, own) in enumerate(zip(self.logs, arguments, strict=True)):
            variables = {
                "JAX_COORDINATOR_ADDRESS": coordinator,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices[index]}",
            }
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*(inside[index] if inside else ()), sys.executable, *own],
                        cwd=ROOT,
                        env=env | variables,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def wait_for(self, text: str, *, index: int = 0, seconds: float = 240) -> None:
        """Returns once the log of process `index` holds `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.logs[index].read_text():
            if self.processes[index].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{text!r} never came:\n{self.output()}")
            time.sleep(0.02)

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.output()}")

    def output(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)


def main(*arguments: str) -> list[str]:
    """Arguments of Python for functa.main."""
    return ["-m", "functa.main", *map(str, arguments)]


def start(
    program_env: dict[str, str], workdir: os.PathLike, *arguments: str, **settings
) -> Processes:
    """Processes of functa.main that share a work directory."""
    workdir = pathlib.Path(workdir)
    return Processes(
        main(*arguments, f"--workdir={workdir}"),
        folder=workdir.parent / f"{workdir.name}.logs",
        env=program_env,
        **settings,
    )
