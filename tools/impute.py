#!/usr/bin/env python3
"""Reconstructs test images of a run from part of their pixels, with its generator as prior and without.

    tools/impute.py runs/digits --task=half --out=half
    tools/impute.py runs/digits --task=random10 --images=360 --draws=16 --out=tenth

Tasks: half (the left half is hidden), random10 (all but a tenth of the pixels is), lowres4 (means of blocks of 4x4
pixels are seen), noisy (all pixels, with noise of standard deviation 0.2).

Without prior, latents are fitted by the inner loop of the run to what is seen. What no seen pixel depends on stays as
zero latents show it, so the mean training image stands beside it, which knows nothing of the image. With prior,
several draws are taken from the latents that could have been seen so; their mean is what is best in PSNR, one of them
what looks like an image. Pixels that were seen as they are stay as they are, and PSNR (dB, data range 1, mean and
standard error over images) is of the others: for lowres4 and noisy of all.

    imputation.png      rows: the image, what is seen, without prior, the mean image, a draw, the mean of draws
    imputation.json     the table, and the settings

Exit status: 0; 2 for bad arguments, a run without a generator, or data that are not there.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from functa.data import images as images_lib
from functa.diffusion import inpainting
from functa.diffusion.inpainter import MOST_DRAWS, Imputer, compare, mean_image
from functa.diffusion.inpainting import METHODS
from functa.fields import psnr as metrics
from functa.pipeline import load
from functa.runtime import config, image_io
from functa.runtime.config import range_errors

_SHOWN = 16  # images
_SIDE = 32  # pixels; smaller images are enlarged to about this side
_CHAINS = 256  # draws at a time, about
_CHAIN_PIXELS = 1 << 18  # of them together: a derivative keeps what every layer has of every pixel


def impute_all(
    imputer: Imputer, images: np.ndarray, *, rows: np.ndarray, draws: int, average: np.ndarray
) -> dict[str, np.ndarray]:
    """functa.diffusion.inpainter.compare, in batches of one size; an image's name is its row of the test split."""
    chains = min(_CHAINS, _CHAIN_PIXELS // math.prod(images.shape[1:3]))
    size = min(len(rows), max(1, chains // draws))
    parts = []
    for start in range(0, len(rows), size):
        some = np.minimum(np.arange(start, start + size), len(rows) - 1)
        part = compare(imputer, images[some], names=rows[some], draws=draws, average=average)
        parts.append({name: values[: len(rows) - start] for name, values in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def table(result: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{method: psnr, standard_error, gain: over without, gain_standard_error, psnr_of_mean_mse}."""
    psnr = {name: metrics.psnr(result[f"mse_{name}"]) for name in METHODS}
    rows = {}
    for name, values in psnr.items():
        gain = values - psnr["without"]
        rows[name] = {
            "psnr": float(values.mean()),
            "standard_error": _standard_error(values),
            "gain": float(gain.mean()),
            "gain_standard_error": _standard_error(gain),
            "psnr_of_mean_mse": float(metrics.psnr(result[f"mse_{name}"].mean(dtype=np.float64))),
        }
    return rows


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def strips(images: np.ndarray, result: dict[str, np.ndarray]) -> bytes:
    columns = [images, result["seen"], *(result[name] for name in METHODS)]
    cells = np.stack([column[:_SHOWN] for column in columns], axis=1).clip(0, 1)
    cells = cells.reshape(-1, *images.shape[1:])
    factor = max(1, _SIDE // max(images.shape[1:3]))
    page = image_io.sheet(image_io.enlarge(cells, factor), gap=2, columns=len(columns))
    return image_io.png(page)


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Writes the files; returns the table.

    Raises:
      ValueError: see the module.
    """
    problems = range_errors(
        {
            "--images": (args.images, 2, 10**6),
            "--draws": (args.draws, 1, MOST_DRAWS),
            "--steps": (args.steps, 1, 10_000),
            "--seed": (args.seed, 0, 2**32 - 1),
        }
    )
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out={out} is there and not an empty folder: name another one")
    if problems:
        raise ValueError("\n".join(problems))
    generator = load.load_generator(args.run)
    kind = inpainting.KINDS[args.task]
    inpainting.check(kind, generator.field.image_shape)
    data: dict[str, Any] = dict(generator.config.data)
    if args.data_dir is not None:
        data["data_dir"] = args.data_dir
    splits = images_lib.open_splits(**data)
    test, train = splits["test"], splits["train"]
    if args.images > test.num_examples:
        raise ValueError(f"--images={args.images}: there are {test.num_examples} test images")
    rows = np.linspace(0, test.num_examples - 1, args.images).astype(np.int64)
    images = test.read(rows)["image"].astype(np.float32) / np.float32(255)
    average = mean_image(train, generator.field.image_shape)
    imputer = Imputer(generator, kind, steps=args.steps, seed=args.seed)
    result = impute_all(imputer, images, rows=rows, draws=args.draws, average=average)
    rows_of_table = table(result)
    out.mkdir(parents=True, exist_ok=True)
    (out / "imputation.png").write_bytes(strips(images, result))
    settings = {name: getattr(args, name) for name in ("task", "images", "draws", "steps", "seed")}
    digest = generator.functaset.manifest.digest
    told = settings | {"functaset_digest": digest, "methods": rows_of_table}
    config.write_json(out / "imputation.json", told)
    return rows_of_table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run whose stage generate is complete")
    parser.add_argument("--task", required=True, choices=tuple(inpainting.KINDS))
    parser.add_argument(
        "--images", type=int, default=64, help="evenly spread over the test split (%(default)s)"
    )
    parser.add_argument("--draws", type=int, default=8, help="of each image (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="noise levels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pixels, noise and draws")
    parser.add_argument("--data_dir", metavar="DIR", help="where the images lie now")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty")
    args = parser.parse_args(argv)
    try:
        rows = run(args)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    print(f"{args.task}, {args.images} test images; dB on hidden pixels, mean and standard error")
    for name, row in rows.items():
        print(
            f"{METHODS[name]:26}{row['psnr']:7.2f} +-{row['standard_error']:5.2f}"
            f"   gain{row['gain']:7.2f} +-{row['gain_standard_error']:5.2f}"
        )
    print(epath.Path(args.out) / "imputation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
