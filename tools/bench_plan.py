#!/usr/bin/env python3
"""Holds what tools/plan.py predicts against what is: products, memory and storage at sizes that fit this machine.

    tools/bench_plan.py                          32, 64 and 128 pixels, as Markdown
    tools/bench_plan.py --sizes=32 --json        one object a row, for machines

Images are crops of scikit-learn's two photographs, fields cifar10_spatial's with cells of 4x4 pixels (map conv3x3,
width 64, depth 6), downstream models those of its preset two_core. Each stage has a process of its own:

    products   multiply-adds of a step by the plan's formulas, beside those of the traced program, counted product
               by product (functa/products.py), and XLA's own count of the compiled program, which has half a
               multiply-add for every addition, sine and comparison too
    memory     what the compiler says that the program needs (arguments, temporaries, outputs), beside what the
               process grew by at most when it made the arguments and ran the step
    storage    bytes of the shards by the plan, beside those of a functaset that the stage encode made with a
               field trained for --train_steps steps

The exit status is 1 where a row is further off than BOUNDS.
"""

import argparse
import ctypes
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark import positive
from ml_collections import ConfigDict
from sklearn.datasets import load_sample_images

from functa.configs import cifar10_spatial
from functa.fields.fitter import build_fitter
from functa.pipeline import encode
from functa.plan import (
    costs,
    memory_traffic,
    plan,
    traced_operations,
    xla_stats,
)
from functa.plan.hardware import parse
from functa.runtime import memory, rng
from functa.runtime import mesh as mesh_lib
from functa.training.tasks.builders import build_meta_learning
from functa.training.train_step import ALL_FINITE, initial_state, make_step

BOUNDS = {"products": 0.05, "memory": 0.15, "storage": 0.02}
STAGES = ("meta_learn", "encode", "classify", "generate")
_RECORDS = {32: 2000, 64: 1000, 128: 400}  # of the functaset, so that no size takes minutes
_HERE = pathlib.Path(__file__).resolve()


def config_of(side: int) -> ConfigDict:
    """The smaller the images, the more of them: a program must need more than what any program brings along."""
    config = cifar10_spatial.get_config("8x8x16,nearest,two_core")
    config.data.image_shape = (side, side, 3)
    config.field.latent_shape = (side // 4, side // 4, 16)
    images = max(512 // side, 1)
    config.meta_learn.batch_size = images
    config.encode.update(batch_size=8 * images, num_augmentations=1, flip=False, crop="none")
    config.classify.batch_size = config.generate.batch_size = 16 * images
    return config


class Crops:
    """Images as functa/data/images.py would read them: crops of two photographs, number k the same in any order."""

    def __init__(self, first: int, num_examples: int, side: int):
        self.num_examples, self._first, self._side = num_examples, first, side
        self._photographs = load_sample_images().images

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.stack([self._crop(self._first + int(index)) for index in indices])
        label = np.zeros(len(indices), np.int32)
        return {"image": images, "label": label, "id": np.asarray(indices, np.int64)}

    def _crop(self, number: int) -> np.ndarray:
        random = np.random.default_rng(number)
        photograph = self._photographs[number % 2]
        row, column = (random.integers(0, size - self._side) for size in photograph.shape[:2])
        return photograph[row : row + self._side, column : column + self._side]


def planner(config: ConfigDict, splits: dict[str, int]) -> plan.Planner:
    assumed = costs.Assumptions(0.5, 1e6, 1e3, 1e6)  # of no matter here
    return plan.Planner(config, parse("cpu:1"), splits, assumed, stages=(), compiles=False)


def products_of(config: ConfigDict, stage: str, found: jax.stages.Compiled) -> dict[str, Any]:
    """planned, counted: multiply-adds of a step; xla: half the operations that XLA counts."""
    splits = {"train": 1000, "validation": 100, "test": 100}
    told: costs.Stage = getattr(planner(config, splits), stage)()
    planned = told.cost.each * config[stage].batch_size + told.cost.once + told.optimizer
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    if stage == "encode":
        encoder, arguments = xla_stats.described_encoder(config, mesh)
        counted = traced_operations.multiply_adds(encoder, *arguments)
    else:
        step = xla_stats.described_step(config, stage, mesh)
        counted = traced_operations.multiply_adds(step.function, *step.arguments)
    xla = xla_stats.xla_operations(found) // 2
    return {"planned": planned, "measured": counted, "xla": xla}


def memory_of(found: jax.stages.Compiled, arguments: Any) -> dict[str, Any]:
    """planned, measured: bytes."""

    def fill():
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1, leaf.dtype), arguments)

    make = jax.jit(fill).lower().compile()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory.process_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    jax.block_until_ready(found(*make()))
    return {
        "planned": memory_traffic.Program.of(found).peak_bytes,
        "measured": memory.peak_bytes() - before,
    }


def trained_field(config: ConfigDict, steps: int) -> Any:
    """Parameters of the task meta_learn after so many steps on crops."""
    task = build_meta_learning(config, sources={})
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    micro = config.meta_learn.micro_batches
    step = make_step(task, mesh=mesh, seed=0, ema_decay=0.0, micro_batches=micro)
    state = jax.jit(functools.partial(initial_state, task))(rng.stream_key(0, "init"))
    size, side = config.meta_learn.batch_size, config.data.image_shape[0]
    images, bad = Crops(0, steps * size, side), jax.device_put(ALL_FINITE)
    for number in range(steps):
        batch = {"image": images.read(np.arange(number * size, (number + 1) * size))["image"]}
        state, _, bad = step(state, mesh_lib.to_devices(mesh, batch, task.batch_spec), bad)
    return jax.device_get(state.params)


def storage_of(config: ConfigDict, steps: int) -> dict[str, Any]:
    """planned, measured: bytes of the shards."""
    side = config.data.image_shape[0]
    splits = {"train": _RECORDS.get(side, 200), "validation": 8, "test": 8}
    planned = planner(config, splits).encode().storage_bytes
    params = trained_field(config, steps)
    sources: Any = {
        split: Crops(1_000_000 * (k + 1), number, side)
        for k, (split, number) in enumerate(splits.items())
    }
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        result = encode.encode(
            directory=folder,
            splits=sources,
            fit=functools.partial(jax.jit(build_fitter(config).encode), params),
            field_digest="sha256:none",
            **encode.encode_arguments(config),
            class_names=(),
            progress=lambda done, total: None,
            stop=lambda: None,
            process_index=0,
            process_count=1,
        )
    measured = round(result["bytes_per_example"] * result["examples"])
    return {"planned": round(planned), "measured": measured, "psnr": result["psnr"]}


def work(side: int, stage: str, train_steps: int) -> dict[str, Any]:
    """{what: {planned, measured, ...}} of one row, of this process."""
    config = config_of(side)
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    if stage == "encode":
        encoder, arguments = xla_stats.described_encoder(config, mesh)
        found = encoder.lower(*arguments).compile()
    else:
        step = xla_stats.described_step(config, stage, mesh)
        arguments = step.arguments
        found = step.function.lower(*arguments).compile()
    told = {"memory": memory_of(found, arguments), "products": products_of(config, stage, found)}
    if stage == "encode":
        told["storage"] = storage_of(config, train_steps)
    return told


def rows(sizes: Sequence[int], stages: Sequence[str], train_steps: int) -> Iterator[dict[str, Any]]:
    """{pixels, stage, what, planned, measured, error, ...} for all that is compared.

    Raises:
      RuntimeError: a process failed; with what it said.
    """
    for side in sizes:
        for stage in stages:
            command = [
                sys.executable,
                str(_HERE),
                f"--row={side},{stage}",
                f"--train_steps={train_steps}",
            ]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=_HERE.parent.parent,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{side} pixels, {stage}:\n{done.stderr}")
            for what, told in json.loads(done.stdout.splitlines()[-1]).items():
                error = told["planned"] / told["measured"] - 1
                yield {"pixels": side, "stage": stage, "what": what} | told | {"error": error}


def line(row: dict[str, Any]) -> str:
    """Of the Markdown table."""
    xla = f"{row['xla']:,}" if "xla" in row else ""
    return (
        f"| {row['pixels']} | {row['stage']} | {row['what']} | {row['planned']:,} | {row['measured']:,} "
        f"| {row['error']:+.2%} | {xla} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="32,64,128", help="pixels, multiples of 16")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--train_steps", type=positive, default=100, help="of the field")
    parser.add_argument("--json", action="store_true", help="one object a row")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # of a process of `rows`
    arguments = parser.parse_args(argv)
    if arguments.row:
        side, stage = arguments.row.split(",")
        print(json.dumps(work(int(side), stage, arguments.train_steps)))
        return 0
    sizes = [int(word) if word.isdecimal() else 0 for word in arguments.sizes.split(",")]
    if any(size < 16 or size % 16 or size > 400 for size in sizes):
        parser.error(f"--sizes={arguments.sizes}: want multiples of 16, from 16 to 400")
    stages = arguments.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"--stages: unknown {', '.join(unknown)}; known are {', '.join(STAGES)}")
    if not arguments.json:
        print(
            "| pixels | stage | | planned | measured | error | by XLA |\n|---|---|---|---|---|---|---|"
        )
    within = True
    try:
        for row in rows(sizes, stages, arguments.train_steps):
            print(json.dumps(row) if arguments.json else line(row), flush=True)
            within &= abs(row["error"]) <= BOUNDS[row["what"]]
    except RuntimeError as error:
        print(f"bench_plan: a process failed: {error}", file=sys.stderr)
        return 3
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
