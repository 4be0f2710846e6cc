"""Runs of the stage meta_learn with different settings, and a table of them.

A trial is one command, `python -m functa.main ...`, in its own work directory below one folder: a
sweep that was stopped goes on where it was, and every row of the table can be run alone. Several at
once share the cores evenly, each run on cores of its own; a small run does not fill many, so two on
one core each do more than one after the other on two. SIGTERM is handed on to the runs, which save.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LEAST_STEPS = 80  # the warm-up is 50


@dataclasses.dataclass(frozen=True)
class Trial:
    """name: of its row and its directory; config: as after --config=; changes: {key: value}."""

    name: str
    config: str
    changes: dict[str, Any]

    def command(self, directory: Path) -> list[str]:
        """What runs it, in the root of the project and its environment."""
        settings = {"stages": "meta_learn"} | self.changes
        return [
            "python",
            "-m",
            "functa.main",
            f"--config={self.config}",
            f"--workdir={directory / self.name}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial showed; PSNR in dB of the validation images, PCA's and `test` of the test images.

    Attributes:
      best, last: of all validations; None before the first.
      largest_drop: how far a validation fell below the best before it; 0 if none did.
      test, pca: mean PSNR of all test images; None where the run diverged.
      steps: taken; seconds: of the stage, compilation and evaluation included.
      commit: of the code that ran it, which may be older than this.
      diverged: what was not finite, in the words of the run; "" for a run that ended well.
    """

    trial: Trial
    best: float | None
    last: float | None
    largest_drop: float
    test: float | None
    pca: float | None
    steps: int
    seconds: float
    commit: str
    diverged: str


def parser(description: str | None, *, steps: int, directory: str) -> argparse.ArgumentParser:
    """With what every sweep asks for; the defaults are its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--steps", type=int, default=steps, help="of each run (default: %(default)s)")
    made.add_argument("--data_dir", default="data", help="folder of the TFDS data set cifar10")
    made.add_argument("--directory", default=directory, help="of all runs (default: %(default)s)")
    made.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    made.add_argument("--commands", action="store_true", help="print the commands, run nothing")
    return made


def check(steps: int, data_dir: str, *, jobs: int, reads: bool) -> str:
    """The folder of the data as an absolute path.

    Raises:
      ValueError: too few steps, no core for each job, or no CIFAR-10 there although it will be read.
    """
    if steps < _LEAST_STEPS:
        raise ValueError(f"--steps must be at least {_LEAST_STEPS}, not {steps}")
    if not 1 <= jobs <= _num_cores():
        raise ValueError(f"--jobs must be 1 to {_num_cores()}, one for each core, not {jobs}")
    if reads and not any(Path(data_dir, "cifar10").glob("*/dataset_info.json")):
        raise ValueError(f"{data_dir}/cifar10 is no data set; `functa prepare` makes it")
    return str(Path(data_dir).resolve())


def can_be_written(file: Path) -> bool:
    """Whether a file can be made or replaced there."""
    return not file.is_dir() and os.access(file.resolve().parent, os.W_OK)


def _num_cores() -> int:
    """Those this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Runs:
    """The runs under way, so that they can be stopped from another thread."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs it to its end in the root of the project."""
        root = Path(__file__).resolve().parents[2]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True) as process:
            self._processes.add(process)
            if self._stopped:
                process.terminate()
            output, errors = process.communicate()
            self._processes.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def stop(self) -> None:
        """Asks all to save and end, also one that is just about to begin."""
        self._stopped = True
        for process in list(self._processes):
            process.terminate()


def run(trial: Trial, directory: Path, runs: Runs) -> Outcome:
    """Runs a trial, or takes up or reads what is there of it.

    Raises:
      RuntimeError: it failed otherwise than by diverging, with its last words; or what is there was
        made with other settings.
    """
    workdir, words = directory / trial.name, directory / trial.name / "diverged.json"
    command = trial.command(directory)
    if words.exists():
        earlier = json.loads(words.read_text())["command"]
        if earlier != command:
            raise RuntimeError(f"{workdir} diverged with other settings: {shlex.join(earlier)}")
        return read(trial, directory)
    # A run that is complete says so at once, and refuses settings other than its own.
    done = runs.run([sys.executable, *command[1:]])
    told = re.search(r"^functa: (.*\b(?:not finite|is nan|is -?inf)\b.*)$", done.stderr, re.M)
    if done.returncode and told:
        temporary = words.with_suffix(".tmp")
        temporary.write_text(json.dumps({"command": command, "told": told[1]}) + "\n")
        temporary.rename(words)
    elif done.returncode or not (workdir / "meta_learn" / "metrics.json").exists():
        ended = f"ended with status {done.returncode}"
        if done.returncode < 0:
            ended = f"was killed by signal {-done.returncode}"
        raise RuntimeError(
            f"{shlex.join(command)}\n{ended}\n{done.stdout[-500:]}{done.stderr[-2000:]}"
        )
    return read(trial, directory)


def read(trial: Trial, directory: Path) -> Outcome:
    """The outcome of a trial that has run."""
    stage = directory / trial.name / "meta_learn"
    words = directory / trial.name / "diverged.json"
    environment = directory / trial.name / "environment.json"
    metrics, curves, made_by = (
        json.loads(file.read_text()) if file.exists() else {}
        for file in (stage / "metrics.json", stage / "curves.json", environment)
    )
    points = curves.get("validation_psnr", [])
    values = [value for _, value in points]
    drops = [max(values[: index + 1]) - value for index, value in enumerate(values)]
    return Outcome(
        trial=trial,
        best=max(values, default=None),
        last=values[-1] if values else None,
        largest_drop=max(drops, default=0.0),
        test=metrics.get("psnr"),
        pca=metrics.get("pca_psnr"),
        steps=metrics.get("steps", points[-1][0] if points else 0),
        seconds=metrics.get("seconds", 0.0),
        commit=(made_by.get("commit") or "")[:7],
        diverged=json.loads(words.read_text())["told"] if words.exists() else "",
    )


COLUMNS = ("trial", "best", "last", "largest drop", "test", "PCA", "steps", "seconds", "commit")


def row(outcome: Outcome) -> tuple[str, ...]:
    """A row of the table."""

    def decibel(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return (
        outcome.trial.name,
        decibel(outcome.best),
        decibel(outcome.last),
        decibel(outcome.largest_drop),
        "diverged" if outcome.diverged else decibel(outcome.test),
        decibel(outcome.pca),
        str(outcome.steps),
        f"{outcome.seconds:.0f}",
        outcome.commit,
    )


def line(values: Sequence[str], width: int) -> str:
    """Aligned for a terminal and, bars included, a row of Markdown."""
    first, *rest = values
    return "| " + " | ".join([f"{first:<{width}}", *(f"{value:>12}" for value in rest)]) + " |"


def run_all(trials: Sequence[Trial], directory: Path, *, jobs: int = 1) -> list[Outcome]:
    """Runs all, `jobs` at a time, printing the rows in order as they come."""
    width = max(len(trial.name) for trial in trials)
    print(line(COLUMNS, width), flush=True)
    print(line(["---"] + ["---:"] * (len(COLUMNS) - 1), width), flush=True)
    runs, shares = Runs(), queue.SimpleQueue[set[int]]()
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        for index in range(jobs):
            shares.put(set(cores[index::jobs]))

    def take_share() -> None:  # a process inherits the cores of the thread that starts it
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, shares.get())

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    earlier = signal.signal(signal.SIGTERM, end)
    pool = concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_share)
    outcomes = []
    try:
        for future in [pool.submit(run, trial, directory, runs) for trial in trials]:
            outcomes.append(future.result())
            print(line(row(outcomes[-1]), width), flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runs.stop()
        pool.shutdown()
        signal.signal(signal.SIGTERM, earlier)
    return outcomes


def print_commands(trials: Sequence[Trial], directory: Path) -> None:
    """What would be run, a line each."""
    print("\n".join(shlex.join(trial.command(directory)) for trial in trials))
