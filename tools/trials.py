"""Runs of the stage meta_learn with different settings, one after the other, and a table of them.

A trial is one command, `python -m functa.main ...`, in its own work directory below one folder: a
sweep that was stopped goes on where it was, and every row of the table can be run alone.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIVERGED = 1  # exit status of functa.main where a number was not finite


@dataclasses.dataclass(frozen=True)
class Trial:
    """name: of its row and its directory; config: as after --config=; changes: {key: value}."""

    name: str
    config: str
    changes: dict[str, Any]

    def command(self, directory: Path) -> list[str]:
        """What runs it, with a path relative to the root of the project where there is one."""
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
      best, last: of all validations.
      largest_drop: how far a validation fell below the best before it; 0 if none did.
      test, pca: mean PSNR of all test images; None where the run diverged.
      steps: taken; seconds: of the stage, compilation and evaluation included.
      diverged: what was not finite, in the words of the run; "" for a run that ended well.
    """

    trial: Trial
    best: float
    last: float
    largest_drop: float
    test: float | None
    pca: float | None
    steps: int
    seconds: float
    diverged: str


def run(trial: Trial, directory: Path) -> Outcome:
    """Runs a trial, or takes up or reads what is there of it.

    Raises:
      RuntimeError: it failed otherwise than by diverging, with its last words.
    """
    workdir, words = directory / trial.name, directory / trial.name / "diverged.txt"
    if not (workdir / "meta_learn" / "metrics.json").exists() and not words.exists():
        command = [sys.executable, *trial.command(directory)[1:]]
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode == DIVERGED:
            words.write_text(done.stderr.strip().splitlines()[-1] + "\n")
        elif done.returncode or not (workdir / "meta_learn" / "metrics.json").exists():
            raise RuntimeError(f"{shlex.join(command)}\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return read(trial, directory)


def read(trial: Trial, directory: Path) -> Outcome:
    """The outcome of a trial that has run."""
    stage = directory / trial.name / "meta_learn"
    words = directory / trial.name / "diverged.txt"
    file = stage / "metrics.json"
    metrics = json.loads(file.read_text()) if file.exists() else {}
    curves = json.loads((stage / "curves.json").read_text()) if stage.exists() else {}
    points = curves.get("validation_psnr", [])
    values = [value for _, value in points] or [float("nan")]
    best, drop = values[0], 0.0
    for value in values:
        drop = max(drop, best - value)
        best = max(best, value)
    return Outcome(
        trial=trial,
        best=best,
        last=values[-1],
        largest_drop=drop,
        test=metrics.get("psnr"),
        pca=metrics.get("pca_psnr"),
        steps=metrics.get("steps", points[-1][0] if points else 0),
        seconds=metrics.get("seconds", 0.0),
        diverged=words.read_text().strip() if words.exists() else "",
    )


COLUMNS = ("trial", "best", "last", "largest drop", "test", "PCA", "steps", "seconds")


def cells(outcome: Outcome) -> tuple[str, ...]:
    """A row of the table."""

    def decibel(value: float | None) -> str:
        return "diverged" if value is None else f"{value:.2f}"

    return (
        outcome.trial.name,
        f"{outcome.best:.2f}",
        f"{outcome.last:.2f}",
        f"{outcome.largest_drop:.2f}",
        decibel(outcome.test),
        "" if outcome.pca is None else f"{outcome.pca:.2f}",
        str(outcome.steps),
        f"{outcome.seconds:.0f}",
    )


def line(values: Sequence[str], width: int) -> str:
    """Aligned for a terminal and, bars included, a row of Markdown."""
    first, *rest = values
    return "| " + " | ".join([f"{first:<{width}}", *(f"{value:>12}" for value in rest)]) + " |"


def run_all(trials: Sequence[Trial], directory: Path) -> list[Outcome]:
    """Runs all, printing each row as it comes."""
    width = max(len(trial.name) for trial in trials)
    print(line(COLUMNS, width), flush=True)
    print(line(["---"] + ["---:"] * (len(COLUMNS) - 1), width), flush=True)
    outcomes = []
    for trial in trials:
        outcomes.append(run(trial, directory))
        print(line(cells(outcomes[-1]), width), flush=True)
    return outcomes
