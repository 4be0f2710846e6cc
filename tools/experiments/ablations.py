"""Trains fields that differ in one setting, and prints a table of them.

    python -m tools.experiments.ablations                     one change at a time
    python -m tools.experiments.ablations --rows=map,width    rows whose names begin so; always the base
    python -m tools.experiments.ablations --sweep=reduced     stability: 12 fields; --sweep=full: 90

Each row is one command, `functa run`, with the stage meta_learn and a directory of its own below
--directory, so the same command resumes, and every row can be run alone (--commands prints them).
The rows of the ablation change the 8x8x16 two_core preset of CIFAR-10 and take --steps steps. The
sweep combines latent shape, interpolation, w0, depth and seed; 4x4 grids take three times as many
steps. Validation is on 500 images, test and PCA on all test images.

Exit status: 0; 1 if a run diverged, a validation fell by more than 0.5 dB, or a spatial field ended
below PCA; 2 for wrong arguments or a run that failed otherwise.
"""

import argparse
import itertools
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MAX_DROP = 0.5  # dB
_processes: list[subprocess.Popen] = []  # runs that have been started
_OPTIMIZER = "meta_learn.optimizer"
_BASE = "cifar10_spatial:8x8x16,nearest,two_core"
_BILINEAR = {"field.interpolation": "bilinear"}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "seed-1": {"seed": 1},
    "seed-2": {"seed": 2},
    "upsampling-2": {"field.upsampling": 2},
    "upsampling-4": {"field.upsampling": 4},
    "loss-mse": {"meta_learn.loss": "mse"},
    "map-linear": {"field.map": "linear"},
    "map-linear-random-cells": {
        "field.map": "linear", "meta_learn.cells_per_image": 4, "meta_learn.batch_size": 128
    },
    "map-mlp": {"field.map": "mlp"},
    "interpolation-bilinear": _BILINEAR | {"field.coordinates": "periodic"},
    "interpolation-bilinear-upsampling-2":
        _BILINEAR | {"field.coordinates": "periodic", "field.upsampling": 2},
    "interpolation-bilinear-local": _BILINEAR,
    "coordinates-periodic": {"field.coordinates": "periodic"},
    "coordinates-global": {"field.coordinates": "global"},
    "modulation-shift-scale": {"field.modulation": "shift_scale"},
    "width-32": {"field.width": 32},
    "width-128": {"field.width": 128},
    "depth-4": {"field.depth": 4},
    "depth-10": {"field.depth": 10},
    "w0-5": {"field.w0": 5.0},
    "w0-30": {"field.w0": 30.0},
    "inner-steps-2": {"inner_loop.steps": 2},
    "inner-steps-5": {"inner_loop.steps": 5},
    "inner-first-order": {"inner_loop.second_order": False},
    "inner-lrs-scalar": {"inner_loop.lr_shape": "scalar"},
    "inner-lrs-full": {"inner_loop.lr_shape": "full"},
    "inner-lrs-shared-by-steps": {"inner_loop.lr_per_step": False},
    "inner-lrs-start-1": {"inner_loop.initial_lr": 1.0},
    "batch-4": {"meta_learn.batch_size": 4},
    "batch-16": {"meta_learn.batch_size": 16},
    "flips": {"meta_learn.flips": True},
    "optimizer-muon-7e-3": {f"{_OPTIMIZER}.learning_rate": 7e-3},
    "optimizer-muon-15e-3": {f"{_OPTIMIZER}.learning_rate": 15e-3},
    "optimizer-muon-6e-2": {f"{_OPTIMIZER}.learning_rate": 6e-2},
    "optimizer-adam-1e-3": {f"{_OPTIMIZER}.name": "adam", f"{_OPTIMIZER}.learning_rate": 1e-3},
    "optimizer-adam-4e-3": {f"{_OPTIMIZER}.name": "adam", f"{_OPTIMIZER}.learning_rate": 4e-3},
    "optimizer-lamb-2e-2": {f"{_OPTIMIZER}.name": "lamb", f"{_OPTIMIZER}.learning_rate": 2e-2},
    "schedule-constant": {f"{_OPTIMIZER}.schedule": "constant"},
    "schedule-constant-ema": {f"{_OPTIMIZER}.schedule": "constant", "meta_learn.ema_decay": 0.99},
}  # fmt: skip


class Trial(NamedTuple):
    """One run: the name of its row and directory, its config, and {key: value} of changes."""

    name: str
    config: str
    changes: dict[str, Any]

    def command(self, directory: pathlib.Path) -> list[str]:
        overrides = {"stages": "meta_learn"} | self.changes
        return [
            *(sys.executable, "-m", "functa.cli", "run", self.config),
            f"--workdir={directory / self.name}",
            *(f"--config.{key}={value}" for key, value in overrides.items()),
        ]


class Outcome(NamedTuple):
    """Result of a trial: PSNR in dB, None if the run has diverged.

    Attributes:
      validation: the last one.
      drop: largest distance of a validation below an earlier one.
      test, pca: of all test images.
      error: the message of a run that diverged, or "".
    """

    name: str
    validation: float | None
    drop: float
    test: float | None
    pca: float | None
    seconds: float
    error: str

    def failure(self) -> str:
        """What the sweep must not show, or ""."""
        if self.error:
            return f"{self.name}: {self.error}"
        if self.drop > _MAX_DROP:
            return f"{self.name}: fell by {self.drop:.2f} dB"
        is_spatial = not self.name.startswith("1x1")
        if is_spatial and not (self.test or 0) > (self.pca or 0):  # also if it is not a number
            return f"{self.name}: {self.test} dB, PCA {self.pca}"
        return ""


def ablation(rows: Sequence[str], *, steps: int, data_dir: str) -> list[Trial]:
    """The base, and the changes whose names begin with one of `rows`; all if there are none.

    Raises:
      ValueError: an entry of `rows` begins no name.
    """
    for row in rows:
        if not any(name.startswith(row) for name in CHANGES):
            raise ValueError(f"no row begins with {row}; rows are {', '.join(CHANGES)}")
    selected = {"base", *(name for name in CHANGES if name.startswith(tuple(rows) or ("",)))}
    return [
        Trial(name, _BASE, _schedule(steps, 4, data_dir) | changes)
        for name, changes in CHANGES.items()
        if name in selected
    ]


def sweep(*, reduced: bool, steps: int, data_dir: str) -> list[Trial]:
    """The fields of the stability sweep; a 1x1 grid has nearest interpolation only."""
    trials = []
    grids = itertools.product(("8x8x16", "4x4x64"), ("nearest", "bilinear"))
    for (latents, interpolation), w0, depth, seed in itertools.product(
        [*grids, ("1x1x256", "nearest")], (10.0, 30.0), (6, 10, 15), range(3)
    ):
        deep = depth == 15 and (latents, interpolation) == ("8x8x16", "nearest")
        if reduced and (seed or not (depth == 6 or deep)):
            continue
        config = "cifar10_functa" if latents == "1x1x256" else "cifar10_spatial"
        changes = _schedule(3 * steps if latents == "4x4x64" else steps, 8, data_dir)
        changes |= {"field.w0": w0, "field.depth": depth, "seed": seed}
        name = f"{latents}-{interpolation}-w{w0:g}-depth{depth}-seed{seed}"
        trials.append(Trial(name, f"{config}:{latents},{interpolation},two_core", changes))
    return trials


def _schedule(steps: int, validations: int, data_dir: str) -> dict[str, Any]:
    every = max(1, steps // validations)
    return {
        "data.data_dir": data_dir,
        "data.validation_examples": 500,
        "meta_learn.steps": steps,
        "meta_learn.eval_every": every,
        "meta_learn.checkpoint_every": every,
    }


def run_trial(trial: Trial, directory: pathlib.Path) -> Outcome:
    """Runs or resumes a trial.

    Raises:
      RuntimeError: the run failed, but did not diverge.
    """
    command, pipe = trial.command(directory), subprocess.PIPE
    with subprocess.Popen(command, cwd=_ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        _processes.append(process)
        stdout, stderr = process.communicate()
    error = stderr.strip().rpartition("\n")[2] if process.returncode else ""
    if process.returncode and "not finite" not in error:
        raise RuntimeError(f"{shlex.join(command)}\n{stdout[-500:]}{stderr[-2000:]}")
    return read_outcome(trial.name, directory / trial.name / "meta_learn", error=error)


def read_outcome(name: str, stage: pathlib.Path, *, error: str) -> Outcome:
    """Reads the files of a run that has ended."""
    metrics, curves = (
        json.loads(file.read_text()) if file.exists() else {}
        for file in (stage / "metrics.json", stage / "curves.json")
    )
    values = [value for _, value in curves.get("validation_psnr", [])]
    drops = [best - value for best, value in zip(itertools.accumulate(values, max), values)]  # noqa: B905
    return Outcome(
        name=name,
        validation=values[-1] if values else None,
        drop=max(drops, default=0.0),
        test=metrics.get("psnr"),
        pca=metrics.get("pca_psnr"),
        seconds=metrics.get("seconds", 0.0),
        error=error,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="beginnings of names, joined by commas")
    parser.add_argument("--sweep", choices=("reduced", "full"), help="run the stability sweep")
    parser.add_argument("--steps", type=int, default=400, help="of each run (400)")
    parser.add_argument("--data-dir", default="data", help="directory of the data set cifar10")
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("runs/ablations"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--commands", action="store_true", help="print the commands only")
    args = parser.parse_args(argv)
    settings: Any = {"steps": args.steps, "data_dir": str(pathlib.Path(args.data_dir).resolve())}
    try:
        if args.sweep:
            trials = sweep(reduced=args.sweep == "reduced", **settings)
        else:
            trials = ablation([row for row in args.rows.split(",") if row], **settings)
    except ValueError as error:
        parser.error(str(error))
    directory = args.directory.resolve()
    if args.commands:
        print("\n".join(shlex.join(trial.command(directory)) for trial in trials))
        return 0
    print("| run | validation | drop | test | PCA | seconds |\n|---|---|---|---|---|---|")
    failures: list[str] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with futures.ThreadPoolExecutor(args.jobs) as pool:
        results = [pool.submit(run_trial, trial, directory) for trial in trials]
        try:
            for future in results:
                outcome = future.result()
                cells = [_decibel(v) for v in outcome[1:5]]
                print(
                    f"| {outcome.name} | {' | '.join(cells)} | {outcome.seconds:.0f} |", flush=True
                )
                failures += filter(None, [outcome.failure()])
        except RuntimeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"ablations: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in _processes:
                process.terminate()  # the run saves and ends
            return 130
    print("\n".join(failures) or "no run diverged or fell, and every spatial field is above PCA")
    return 1 if failures else 0


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
