#!/usr/bin/env python3
"""Compares solvers and numbers of steps, with one generator, by how far their samples are from real images.

    python -m tools.benchmarks.samplers runs/digits --samplers=heun:18,euler:256 --repeats=10

Each sampler draws a sample for each of the first test images, of its class, --repeats times with new noise, which is
the same for all samplers. The Fréchet distance is between features of the samples and of those test images, by the
extractor that config.generate.features describes: its numbers compare only within a table.

With --json: {"samples", "features", "guidance", "rows": [{"solver", "steps", "distance": mean, "standard_error",
"ratio": to the first sampler's distance with the same noise, mean, "ratio_standard_error", "samples_per_second": of
the repeats but the first, which compiles}]}.

Exit status: 0; 2 for bad arguments, a run without a generator, or data that are not there.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from functa.data import images
from functa.diffusion.solvers import SOLVERS_WITHOUT_SETTINGS
from functa.diffusion.trained_generator import TrainedGenerator
from functa.evaluation import distances, generation_eval
from functa.fields.decoder import make_decoder
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime.config import range_errors


def parse_samplers(text: str) -> list[tuple[str, int]]:
    """`heun:18,euler:256` -> [("heun", 18), ("euler", 256)]."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\w+):(\d{1,5})", part)
        if not match or match[1] not in SOLVERS_WITHOUT_SETTINGS:
            known = ", ".join(SOLVERS_WITHOUT_SETTINGS)
            raise argparse.ArgumentTypeError(
                f"{part!r}: a sampler looks like heun:18, and solvers are {known}"
            )
        found.append((match[1], int(match[2])))
    return found


def make_draw(
    trained: TrainedGenerator, *, batch_size: int
) -> Callable[[int, np.ndarray], np.ndarray]:
    """Returns (number of the repetition, labels [n]) -> latents [n, i, j, d]."""

    def draw(repetition: int, labels: np.ndarray) -> np.ndarray:
        numbers = np.arange(len(labels), dtype=np.int32)
        return trained.sample(
            seed=repetition, numbers=numbers, labels=labels, batch_size=batch_size
        )

    return draw


def measure(
    draw: Callable[[int, np.ndarray], np.ndarray],
    distance: Callable[[np.ndarray], float],
    labels: np.ndarray,
    repeats: int,
) -> tuple[np.ndarray, float]:
    """(distances [repeats], samples a second)."""
    found, seconds = [], []
    for repeat in range(repeats):
        begin = time.perf_counter()
        latents = draw(repeat, labels)
        seconds.append(time.perf_counter() - begin)
        found.append(distance(latents))
    return np.asarray(found), len(labels) * (repeats - 1) / sum(seconds[1:])


def with_samplers(
    trained: TrainedGenerator, samplers: list[tuple[str, int]]
) -> list[TrainedGenerator]:
    """The generator with each solver and number of steps.

    Raises:
      ValueError: settings out of range; the message lists all of them.
    """
    generators, errors = [], []
    for solver, steps in samplers:
        try:
            generators.append(trained.with_sampling(solver=solver, steps=steps))
        except ValueError as error:
            errors.append(f"{solver}:{steps}: {error}")
    if errors:
        raise ValueError("\n".join(errors))
    return generators


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What the module's docstring says.

    Raises:
      ValueError: a run, arguments or data that do not serve.
    """
    problems = range_errors({"--repeats": (args.repeats, 2, 1000)})
    if problems:
        raise ValueError("\n".join(problems))
    config = config_lib.load(args.run)
    generator = load.load_generator(args.run)
    generators = with_samplers(generator, args.samplers)
    data: dict[str, Any] = dict(config.data)
    if args.data_dir is not None:
        data["data_dir"] = args.data_dir
    sources = images.open_splits(**data)
    problems = generation_eval.validate_splits(config.generate, sources)
    if problems:
        raise ValueError("\n".join(problems))
    count = min(config.generate.samples, generator.functaset.num_examples("test"))
    train, test = generation_eval.read_references(sources, count)
    extractor = generation_eval.make_extractor(
        config.generate.features,
        train=train,
        test=test,
        num_classes=config.data.num_classes,
        seed=config.seed,
    )
    real = distances.fit_gaussian(extractor.extract(test["image"] / np.float32(255)))
    decode = make_decoder(
        generator.field, generator.field_params, batch_size=config.generate.sample_batch_size
    )

    def distance(latents: np.ndarray) -> float:
        made = distances.fit_gaussian(extractor.extract(decode(latents)))
        return distances.frechet_distance(real, made)

    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    batch_size = config.generate.sample_batch_size
    for (solver, steps), changed in zip(args.samplers, generators, strict=True):
        found, rate = measure(
            make_draw(changed, batch_size=batch_size), distance, test["label"], args.repeats
        )
        first = found if first is None else first
        row = {"solver": solver, "steps": steps, "samples_per_second": rate}
        row["distance"], row["standard_error"] = _mean(found)
        row["ratio"], row["ratio_standard_error"] = _mean(found / first)
        rows.append(row)
    guidance = config_lib.to_dict(config.generate.guidance)
    return {"samples": count, "features": extractor.name, "guidance": guidance, "rows": rows}


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run whose stage generate is complete")
    parser.add_argument(
        "--samplers",
        type=parse_samplers,
        default="heun:18,euler:256",
        metavar="SOLVER:STEPS,...",
        help="default: %(default)s",
    )
    parser.add_argument("--repeats", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--data_dir", metavar="DIR", help="where the images lie now")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        result = run(args)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['samples']} samples, {args.repeats} times; features: {result['features']}")
    for row in result["rows"]:
        name = f"{row['solver']}:{row['steps']}"
        print(
            f"{name:16} distance {row['distance']:.4f} +- {row['standard_error']:.4f}   ratio"
            f" {row['ratio']:.3f} +- {row['ratio_standard_error']:.3f}   {row['samples_per_second']:,.0f} samples/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
