#!/usr/bin/env python3
"""Time and memory of a meta-learning step against batch, image, grid, network and inner steps.

    python -m tools.benchmarks.growth                  all rows, as Markdown
    python -m tools.benchmarks.growth --rows=batch     those whose name begins so; --json for machines
    python -m tools.benchmarks.growth --commands       only what each row runs

Each row is python -m tools.benchmarks.step --noreference in a process of its own, so that its peak memory is its
own: on a CPU the process's, Python, compiler and the batch included (about 0.5 GB), on an accelerator
the device's. `seconds` is the median step; `of ceiling` counts necessary operations only.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from tools.benchmarks.harness import positive

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARK = "tools.benchmarks.step"
_FIELD, _LOOP = "--config.field.", "--config.inner_loop."


def _image(side: int) -> list[str]:
    """Images of another size with cells of the same size, 4x4 pixels."""
    cells = side // 4
    return [
        f"--config.data.image_shape={side},{side},3",
        f"{_FIELD}latent_shape={cells},{cells},16",
    ]


_IMAGENET = [
    "--config.data.image_shape=256,256,3",
    f"{_FIELD}latent_shape=32,32,64",
    f"{_FIELD}depth=8",
    f"{_FIELD}width=256",
    "--batch_size=1",
]
_RANDOM_CELLS = [f"{_FIELD}map=linear", "--config.meta_learn.cells_per_image=64", "--batch_size=4"]
# Every row changes the two_core preset: 8x8x16, width 64, depth 6, 3 inner steps, 8 images.
ROWS: dict[str, list[str]] = {
    **{f"batch {size}": [f"--batch_size={size}"] for size in (2, 4, 8, 16, 32)},
    **{
        f"image {side}x{side}, 4 images": [*_image(side), "--batch_size=4"]
        for side in (32, 64, 128)
    },
    "grid 4x4x64": [f"{_FIELD}latent_shape=4,4,64"],
    "grid 8x8x16": [f"{_FIELD}latent_shape=8,8,16"],
    "grid 16x16x4": [f"{_FIELD}latent_shape=16,16,4"],
    **{f"depth {depth}": [f"{_FIELD}depth={depth}"] for depth in (4, 6, 8, 10)},
    **{f"width {width}": [f"{_FIELD}width={width}"] for width in (32, 64, 128, 256)},
    **{f"inner steps {steps}": [f"{_LOOP}steps={steps}"] for steps in (1, 2, 3, 5)},
    "first order": [f"{_LOOP}second_order=False"],
    **{f"chunks {chunks}": [f"{_LOOP}chunks={chunks}"] for chunks in (2, 8)},
    **{
        f"64 random cells of {side}x{side}, 4 images": [*_image(side), *_RANDOM_CELLS]
        for side in (32, 64, 128, 256)
    },
    "ImageNet 256x256, 32x32x64, depth 8, width 256": _IMAGENET,
    "ImageNet, chunks 8": [*_IMAGENET, f"{_LOOP}chunks=8"],
}


def command(row: str) -> list[str]:
    config = "--config=configs/cifar10_spatial.py:8x8x16,nearest,two_core"
    return [
        sys.executable,
        "-m",
        BENCHMARK,
        config,
        "--noreference",
        "--json",
        "--batch_size=8",
        *ROWS[row],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="beginnings of names, separated by commas")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--json", action="store_true", help="one object a row")
    parser.add_argument("--commands", action="store_true")
    arguments = parser.parse_args(argv)
    wanted = tuple(filter(None, arguments.rows.split(","))) or ("",)
    rows = [row for row in ROWS if row.startswith(wanted)]
    if not rows:
        print(
            f"bench_growth: no row begins with {arguments.rows!r}: {', '.join(ROWS)}",
            file=sys.stderr,
        )
        return 2
    if not arguments.json and not arguments.commands:
        print("| row | seconds | images/s | of ceiling | peak memory |\n|---|---|---|---|---|")
    for row in rows:
        line = [*command(row), f"--repeats={arguments.repeats}"]
        if arguments.commands:
            print(f"{row}: {shlex.join(line)}")
            continue
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            print(f"bench_growth: {row} failed:\n{done.stderr}", file=sys.stderr)
            return 3
        found = json.loads(done.stdout)
        if arguments.json:
            print(json.dumps({"row": row} | found), flush=True)
            continue
        print(
            f"| {row} | {found['seconds']:.3g} | {found['images_per_second']:.3g} "
            f"| {found['fraction_of_ceiling']:.0%} | {found['peak_bytes'] / 1e9:.2f} GB |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
