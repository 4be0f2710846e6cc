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

import jax
import numpy as np
from ml_collections import ConfigDict

from functa.data import images
from functa.diffusion import sharded_sampling
from functa.evaluation import distances, generation_eval
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import rng
from functa.runtime.config import range_errors
from functa.training.tasks import generation

_SOLVERS = ("euler", "heun", "dpmpp_2m")  # that need no settings of their own


def parse_samplers(text: str) -> list[tuple[str, int]]:
    """`heun:18,euler:256` -> [("heun", 18), ("euler", 256)]."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\w+):(\d{1,5})", part)
        if not match or match[1] not in _SOLVERS:
            known = ", ".join(_SOLVERS)
            raise argparse.ArgumentTypeError(
                f"{part!r}: a sampler looks like heun:18, and solvers are {known}"
            )
        found.append((match[1], int(match[2])))
    return found


def make_draw(
    generator: load.Generator, config: ConfigDict
) -> Callable[[int, np.ndarray], np.ndarray]:
    """(number of the repeat, labels [n]) -> latents [n, i, j, d]."""
    sampler = generation.make_keyed_sampler(config, generator.normalization, keep_trajectory=False)
    compiled = jax.jit(lambda *inputs: sampler(*inputs).latents)
    block = config.generate.sample_batch_size

    def draw(repeat: int, labels: np.ndarray) -> np.ndarray:
        key, parts = rng.stream_key(repeat, "sample"), []
        for start in range(0, len(labels), block):
            rows = np.arange(start, start + block, dtype=np.int32)  # the last block is filled up
            some = labels[np.minimum(rows, len(labels) - 1)]
            parts.append(np.asarray(compiled(generator.params, key, rows, some)))
        return np.concatenate(parts)[: len(labels)]

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


def configs_of(generator: load.Generator, asked: list[tuple[str, int]]) -> list[ConfigDict]:
    """The run's config with each sampler.

    Raises:
      ValueError: all that is impossible.
    """
    configs, problems = [], []
    for solver, steps in asked:
        config = config_lib.from_dict(config_lib.to_dict(generator.config))
        config.generate.solver = ConfigDict({"name": solver})
        config.generate.schedule.steps = steps
        problems += [f"{solver}:{steps}: {problem}" for problem in generation.check(config)]
        configs.append(config)
    if problems:
        raise ValueError("\n".join(problems))
    return configs


def run(args: argparse.Namespace) -> dict[str, Any]:
    """What the module's docstring says.

    Raises:
      ValueError: a run, arguments or data that do not serve.
    """
    problems = range_errors({"--repeats": (args.repeats, 2, 1000)})
    if problems:
        raise ValueError("\n".join(problems))
    generator = load.load_generator(args.run)
    config = generator.config
    configs = configs_of(generator, args.samplers)
    data: dict[str, Any] = dict(config.data)
    if args.data_dir is not None:
        data["data_dir"] = args.data_dir
    sources = images.open_splits(**data)
    problems = generation_eval.check_splits(config, sources)
    if problems:
        raise ValueError("\n".join(problems))
    count = generation_eval.sample_count(config, generator.functaset)
    train, test = generation_eval.images_to_judge_by(config, sources, count)
    extractor = generation_eval.extractor(config, train=train, test=test)
    real = distances.fit_gaussian(extractor.extract(test["image"] / np.float32(255)))
    decode = sharded_sampling.make_decoder(
        generator.field, generator.field_params, batch_size=config.generate.sample_batch_size
    )

    def distance(latents: np.ndarray) -> float:
        made = distances.fit_gaussian(extractor.extract(decode(latents)))
        return distances.frechet_distance(real, made)

    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for (solver, steps), changed in zip(args.samplers, configs, strict=True):
        found, rate = measure(make_draw(generator, changed), distance, test["label"], args.repeats)
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
