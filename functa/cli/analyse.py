"""`functa analyse`: measures the trained field of a run."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from functa.data import crops as crops_lib
from functa.data import images as images_lib
from functa.evaluation.analysis import inner_steps, latent_space, rate_chart, storage
from functa.evaluation.analysis.table import Table
from functa.evaluation.analysis.trained_field import TrainedField
from functa.fields.fitter import Fitter
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime.errors import DataError, UserError, as_user_errors
from functa.runtime.storage import is_remote
from functa.training.checkpoint import digest

DEFAULT_IMAGES = 256
DEFAULT_SCALES = [2, 4]
MIN_IMAGES = 2  # a nearest neighbor and a midpoint need two

DESCRIPTION = f"""Measures the trained field of a run: how it fits, and what its latents cost.

  functa analyse runs/digits
  functa analyse runs/digits --measure=steps,quantization --images=360
  functa analyse RUN --measure=resolution --pictures=FOLDER

Measures:
  steps            PSNR by inner steps
  free             PSNR of latents that Adam optimizes
  quantization     PSNR by bits per latent
  rate_distortion  PSNR by bytes per image, beside PCA, JPEG and WebP; also drawn as a chart
  resolution       PSNR above the training resolution, beside bicubic interpolation; needs --pictures
  latents          nearest neighbors, midpoints, and noise on latents

The stage meta_learn of the run must be complete. The data set of the run is read, a functaset is not.
By default, {DEFAULT_IMAGES} images are measured, or all images of a smaller split.

--json writes one object: run, split, field_digest, and tables: {{name: {{title, note, images, columns:
{{key: {{unit, meaning}}}}, rows: [{{key: value}}]}}}}. Values in "%" are stored as fractions; missing
values and values that are not finite are null.
"""

MEASURES: dict[str, Callable[..., dict[str, Table]]] = {
    "steps": inner_steps.inner_steps,
    "free": inner_steps.free_latents,
    "quantization": storage.quantization_table,
    "rate_distortion": storage.rate_distortion,
    "resolution": latent_space.resolution,
    "latents": latent_space.latent_space,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=epath.Path, help="run directory")
    parser.add_argument(
        "--measure",
        type=_measure_list,
        metavar="A,B",
        help="measures (default: all; resolution only with --pictures)",
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="default: test"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="number of images, evenly spread over the split"
    )
    parser.add_argument(
        "--pictures",
        type=epath.Path,
        metavar="FOLDER",
        help="PNG and JPEG files, larger than the images, to crop",
    )
    parser.add_argument(
        "--scales",
        type=_scale_list,
        metavar="2,4",
        help="multiples of the training resolution, for the measure resolution (default: 2,4)",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="directory of the data set, if it has moved"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the tables as JSON; - writes JSON instead of text"
    )
    parser.add_argument(
        "--chart",
        type=epath.Path,
        metavar="FILE.svg",
        help="rate-distortion chart (default: RUN/analysis.svg)",
    )


def run(args: argparse.Namespace) -> int:
    names = args.measure or [name for name in MEASURES if name != "resolution" or args.pictures]
    chart_file = args.chart or args.run / "analysis.svg"
    json_file = epath.Path(args.json) if args.json not in (None, "-") else None
    with as_user_errors():
        fitter, params = load.load_fitter(args.run)
    problems = _flag_problems(args, names)
    if "rate_distortion" in names:
        problems += _output_problems("--chart", chart_file)
    if json_file:
        problems += _output_problems("--json", json_file)
    trained_field, crops, more_problems = _load_images(args, names, fitter, params)
    if problems := problems + more_problems:
        raise UserError("\n".join(problems))
    tables: dict[str, Table] = {}
    for name in names:
        start = time.monotonic()
        tables |= MEASURES[name](trained_field, *([crops] if name == "resolution" else []))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    result = json.dumps(
        {
            "run": str(args.run),
            "split": args.split,
            "field_digest": digest(params),
            "tables": {name: table.to_json() for name, table in tables.items()},
        },
        indent=1,
        allow_nan=False,
    )
    print(result if args.json == "-" else "\n\n".join(t.to_text() for t in tables.values()))
    if json_file:
        json_file.write_text(result + "\n")
    if "rate_distortion" in tables:
        chart_file.write_text(rate_chart.draw(tables["rate_distortion"]))
        print(f"chart: {chart_file}", file=sys.stderr)
    return 0


def _measure_list(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := set(names) - set(MEASURES):
        raise argparse.ArgumentTypeError(
            f"unknown measure {', '.join(sorted(unknown))}: choose from {', '.join(MEASURES)}"
        )
    return names


def _scale_list(text: str) -> list[int]:
    try:
        scales = list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        scales = []
    if not scales or min(scales) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be integers above 1, such as 2,4")
    return scales


def _flag_problems(args: argparse.Namespace, names: list[str]) -> list[str]:
    """Flags that need a measure that is not requested, and measures without their flags."""
    problems = []
    for flag, name in (
        ("pictures", "resolution"),
        ("scales", "resolution"),
        ("chart", "rate_distortion"),
    ):
        if getattr(args, flag) is not None and name not in names:
            problems.append(f"--{flag} needs --measure={name}")
    if "resolution" in names and args.pictures is None:
        problems.append("--measure=resolution needs --pictures=FOLDER with pictures to crop")
    if args.images is not None and args.images < MIN_IMAGES:
        problems.append(f"--images={args.images} must be at least {MIN_IMAGES}")
    return problems


def _output_problems(flag: str, file: epath.Path) -> list[str]:
    """Reports an output file that cannot be written, before the measurements start."""
    if not file.parent.is_dir():
        return [f"{flag}={file}: the directory {file.parent} does not exist"]
    if file.is_dir() or (not is_remote(file) and not os.access(file.parent, os.W_OK)):
        return [f"{flag}={file} cannot be written: choose another file"]
    return []


def _load_images(
    args: argparse.Namespace, names: list[str], fitter: Fitter, params: Any
) -> tuple[TrainedField | None, dict[int, np.ndarray], list[str]]:
    """Reads the images and the crops of pictures.

    Returns:
      (trained field, {scale: crops}, problems); the first two are incomplete if there are problems.
    """
    config = config_lib.load(args.run)
    if args.data_dir is not None:
        config.data.data_dir = args.data_dir
    problems: list[str] = []
    trained_field, crops, count = None, {}, args.images or DEFAULT_IMAGES
    try:
        sources = images_lib.open_splits(**config.data)
    except DataError as error:
        problems += error.problems
    else:
        available = sources[args.split].num_examples
        count = args.images or min(DEFAULT_IMAGES, available)
        if available < max(count, MIN_IMAGES):
            problems.append(f"--images={count}: the split {args.split} has {available} images")
        else:
            rows = np.linspace(0, available - 1, count).astype(np.int64)
            batch = sources[args.split].read(rows)
            trained_field = TrainedField(
                fitter=fitter,
                params=params,
                train=sources["train"],
                images=batch["image"],
                labels=batch["label"],
                batch_size=config.meta_learn.eval_batch_size,
                seed=config.seed,
            )
    if "resolution" in names and args.pictures is not None:
        h, w, c = fitter.field.image_shape
        scales = args.scales or DEFAULT_SCALES
        try:
            found = crops_lib.read_crops(
                args.pictures,
                shapes=[(scale * h, scale * w) for scale in scales],
                channels=c,
                count=max(1, count),
            )
            crops = dict(zip(scales, found, strict=True))
        except (ValueError, OSError) as error:
            problems += str(error).splitlines()
    return trained_field, crops, problems
