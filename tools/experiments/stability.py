#!/usr/bin/env python3
"""Trains many fields for a short time and tells whether any of them fell: does one default serve all?

    python -m tools.experiments.stability --reduced     12 runs
    python -m tools.experiments.stability               all: {nearest, bilinear} x {8x8x16, 4x4x64, 1x1x256} x
                                           w0 {10, 30} x depth {6, 10, 15} x 3 seeds

CIFAR-10, the two_core presets, nothing changed but what the row names. A run takes --steps; those of
4x4 grids, whose cells of 8x8 pixels take longer to learn, three times as many. Validation is on 500
images, eight times a run; test and PCA on all test images. --reduced takes depth 6 and seed 0 for all grids,
and depth 15 for 8x8x16 nearest. The same command goes on where it was stopped; the command of every
row is printed by --commands, and each can be run alone.

Exit status: 0 where no run diverged, no validation fell more than 0.5 dB below an earlier one and
every spatial field ended above PCA; 1 otherwise; 2 for bad arguments; 3 where a run failed for
another reason, so that nothing is told.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.experiments import trials

LATENTS = ("8x8x16", "4x4x64", "1x1x256")
LARGEST_DROP = 0.5  # dB
VALIDATIONS = 8


def plan(*, reduced: bool, steps: int, data_dir: str) -> list[trials.Trial]:
    """The trials of a sweep; a 1x1 grid has one cell and one lookup."""
    chosen = []
    for latents, lookup, w0, depth, seed in itertools.product(
        LATENTS, ("nearest", "bilinear"), (10.0, 30.0), (6, 10, 15), (0, 1, 2)
    ):
        spatial = latents != "1x1x256"
        if not spatial and lookup == "bilinear":
            continue
        deep = depth == 15 and (latents, lookup) == ("8x8x16", "nearest")
        if reduced and (seed or not (depth == 6 or deep)):
            continue
        name = "cifar10_spatial" if spatial else "cifar10_functa"
        taken = 3 * steps if latents == "4x4x64" else steps
        chosen.append(
            trials.Trial(
                name=f"{latents}-{lookup}-w{w0:g}-depth{depth}-seed{seed}",
                config=f"configs/{name}.py:{latents},{lookup},two_core",
                changes={
                    "data.data_dir": data_dir,
                    "data.validation_examples": 500,
                    "field.w0": w0,
                    "field.depth": depth,
                    "seed": seed,
                    "meta_learn.steps": taken,
                    "meta_learn.eval_every": max(1, taken // VALIDATIONS),
                    "meta_learn.checkpoint_every": max(1, taken // VALIDATIONS),
                },
            )
        )
    return chosen


def failures(outcomes: Sequence[trials.Outcome]) -> list[str]:
    """What the sweep must not show, a line each."""
    found = []
    for outcome in outcomes:
        name = outcome.trial.name
        if outcome.diverged:
            found.append(f"{name}: {outcome.diverged}")
        elif outcome.largest_drop > LARGEST_DROP:
            found.append(f"{name}: fell by {outcome.largest_drop:.2f} dB")
        elif outcome.test is None or outcome.pca is None:
            found.append(f"{name}: no result")
        elif (
            not name.startswith("1x1") and not outcome.test > outcome.pca
        ):  # nor if it is no number
            found.append(f"{name}: {outcome.test:.2f} dB, PCA {outcome.pca:.2f}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = trials.parser(__doc__, steps=400, directory="runs/stability")
    parser.add_argument("--reduced", action="store_true", help="the short sweep")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    args = parser.parse_args(argv)
    directory = Path(args.directory).resolve()
    try:
        if args.json and not trials.can_be_written(Path(args.json)):
            raise ValueError(f"--json={args.json} cannot be written")
        data_dir = trials.check(args.steps, args.data_dir, jobs=args.jobs, reads=not args.commands)
        if not args.commands:
            directory.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    planned = plan(reduced=args.reduced, steps=args.steps, data_dir=data_dir)
    if args.commands:
        trials.print_commands(planned, directory)
        return 0
    try:
        outcomes = trials.run_all(planned, directory, jobs=args.jobs)
    except RuntimeError as error:
        print(f"bench_stability: {error}", file=sys.stderr)
        return 3
    if args.json:
        rows = [
            vars(outcome)
            | {"trial": outcome.trial.name, "command": outcome.trial.command(directory)}
            for outcome in outcomes
        ]
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    found = failures(outcomes)
    print(
        "\n".join(found) if found else "no run diverged or fell, every spatial field is above PCA"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
