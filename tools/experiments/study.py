#!/usr/bin/env python3
"""What moves PSNR at the same number of floats: one change at a time, the rest as it was.

    python -m tools.experiments.study                     all rows
    python -m tools.experiments.study --rows map,width    those whose names begin so; the base always
    python -m tools.experiments.study --commands          prints the command of every row, runs nothing

CIFAR-10, 8x8x16 = 1,024 floats, the two_core preset cut to --steps; all take as many
steps, so the seconds tell what a change costs. Validation is on 500 images,
test and PCA on all test images. The same command goes on where it was stopped; docs/STUDY.md holds
what came out, with one line of reading a row.

Exit status: 0; 2 for bad arguments; 3 where a run failed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.experiments import trials

BASE = "configs/cifar10_spatial.py:8x8x16,nearest,two_core"
_OPTIMIZER = "meta_learn.optimizer"
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "seed-1": {"seed": 1},
    "seed-2": {"seed": 2},
    "upsampling-2": {"field.upsampling": 2},
    "upsampling-4": {"field.upsampling": 4},
    "loss-mse": {"meta_learn.loss": "mse"},
    "map-linear": {"field.map": "linear"},
    "map-linear-random-cells": {
        "field.map": "linear",
        "meta_learn.cells_per_image": 4,
        "meta_learn.batch_size": 128,
    },
    "map-mlp": {"field.map": "mlp"},
    "interpolation-bilinear-upsampling-2": {
        "field.interpolation": "bilinear",
        "field.coordinates": "periodic",
        "field.upsampling": 2,
    },
    "interpolation-bilinear": {"field.interpolation": "bilinear", "field.coordinates": "periodic"},
    "interpolation-bilinear-local": {"field.interpolation": "bilinear"},
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
    "inner-rates-scalar": {"inner_loop.lr_shape": "scalar"},
    "inner-rates-full": {"inner_loop.lr_shape": "full"},
    "inner-rates-shared-by-steps": {"inner_loop.lr_per_step": False},
    "inner-rates-start-1": {"inner_loop.initial_lr": 1.0},
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
    "schedule-constant-ema": {
        f"{_OPTIMIZER}.schedule": "constant",
        "meta_learn.ema_decay": 0.99,
    },
}


def plan(rows: Sequence[str], *, steps: int, data_dir: str) -> list[trials.Trial]:
    """The base, and every change whose name begins with one of `rows`; all if there are none.

    Raises:
      ValueError: words that begin no name.
    """
    unknown = [word for word in rows if not any(name.startswith(word) for name in CHANGES)]
    if unknown:
        raise ValueError(f"no row begins with {', '.join(unknown)}; there are {', '.join(CHANGES)}")
    common = {
        "data.data_dir": data_dir,
        "data.validation_examples": 500,
        "meta_learn.steps": steps,
        "meta_learn.eval_every": max(1, steps // 4),
        "meta_learn.checkpoint_every": max(1, steps // 4),
    }
    return [
        trials.Trial(name=name, config=BASE, changes=common | changes)
        for name, changes in CHANGES.items()
        if name == "base" or not rows or any(name.startswith(word) for word in rows)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = trials.parser(__doc__, steps=400, directory="runs/study")
    parser.add_argument("--rows", default="", help="beginnings of names, joined by commas")
    args = parser.parse_args(argv)
    directory = Path(args.directory).resolve()
    try:
        data_dir = trials.check(args.steps, args.data_dir, jobs=args.jobs, reads=not args.commands)
        rows = list(filter(None, args.rows.split(",")))
        planned = plan(rows, steps=args.steps, data_dir=data_dir)
        if not args.commands:
            directory.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.commands:
        trials.print_commands(planned, directory)
        return 0
    try:
        trials.run_all(planned, directory, jobs=args.jobs)
    except RuntimeError as error:
        print(f"study: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
