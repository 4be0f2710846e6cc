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

from functa.data import crops, images
from functa.evaluation.analysis import inner_steps, latent_space, storage
from functa.evaluation.analysis.table import Table
from functa.evaluation.analysis.trained_field import TrainedField
from functa.fields.fitter import Fitter
from functa.pipeline import load, released
from functa.report.rate_distortion import rate_distortion_chart
from functa.runtime import config as config_lib
from functa.runtime.errors import UserError, as_user_errors
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
    add = parser.add_argument
    add("run", help="run directory, or a released model")
    add(
        "--measure",
        type=_measure_list,
        metavar="A,B",
        help="measures (default: all; resolution only with --pictures)",
    )
    add("--split", default="test", choices=("train", "validation", "test"), help="default: test")
    add("--images", type=int, metavar="N", help="number of images, evenly spread over the split")
    add(
        "--pictures",
        type=epath.Path,
        metavar="FOLDER",
        help="PNG and JPEG files, larger than the images, to crop",
    )
    add(
        "--scales",
        type=_scale_list,
        metavar="2,4",
        help="multiples of the training resolution, for the measure resolution (default: 2,4)",
    )
    add("--data-dir", metavar="DIR", help="directory of the data set, if it has moved")
    add("--json", metavar="FILE", help="write the tables as JSON; - writes JSON instead of text")
    add(
        "--chart",
        type=epath.Path,
        metavar="FILE.svg",
        help="rate-distortion chart (default: analysis.svg in RUN, or here for a released model)",
    )


def run(args: argparse.Namespace) -> int:
    names = args.measure or [name for name in MEASURES if name != "resolution" or args.pictures]
    outputs = {"--json": epath.Path(args.json)} if args.json not in (None, "-") else {}
    with as_user_errors():
        args.run = released.find_run(args.run)
        if "rate_distortion" in names:
            default = args.run if not released.is_model(args.run) else epath.Path(".")
            outputs["--chart"] = args.chart or default / "analysis.svg"
        fitter, params = load.load_fitter(args.run)
        if problems := _flag_problems(args, names) + _output_problems(outputs):
            raise UserError("\n".join(problems))
        trained_field = _load_trained_field(args, fitter, params)
        crop_sets = _load_crops(args, trained_field) if "resolution" in names else {}
    tables: dict[str, Table] = {}
    for name in names:
        start = time.monotonic()
        arguments = {"crops": crop_sets} if name == "resolution" else {}
        tables |= MEASURES[name](trained_field, **arguments)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    result = {
        "run": str(args.run),
        "split": args.split,
        "field_digest": digest(params),
        "tables": {name: table.to_json() for name, table in tables.items()},
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    print(text if args.json == "-" else "\n\n".join(table.to_text() for table in tables.values()))
    if "--json" in outputs:
        outputs["--json"].write_text(text + "\n")
    if "--chart" in outputs:
        outputs["--chart"].write_text(rate_distortion_chart(tables["rate_distortion"]))
        print(f"chart: {outputs['--chart']}", file=sys.stderr)
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
    """Flags without their measure, and a measure without its flag."""
    measures = {"pictures": "resolution", "scales": "resolution", "chart": "rate_distortion"}
    problems = [
        f"--{flag} needs --measure={name}"
        for flag, name in measures.items()
        if getattr(args, flag) is not None and name not in names
    ]
    if "resolution" in names and args.pictures is None:
        problems.append("--measure=resolution needs --pictures=FOLDER with pictures to crop")
    if args.images is not None and args.images < MIN_IMAGES:
        problems.append(f"--images={args.images} must be at least {MIN_IMAGES}")
    return problems


def _output_problems(files: dict[str, epath.Path]) -> list[str]:
    """Output files that cannot be written, by flag; checked before the measurements start."""
    problems = []
    for flag, file in files.items():
        if not file.parent.is_dir():
            problems.append(f"{flag}={file}: the directory {file.parent} does not exist")
        elif file.is_dir() or (not is_remote(file) and not os.access(file.parent, os.W_OK)):
            problems.append(f"{flag}={file} cannot be written: choose another file")
    return problems


def _load_trained_field(args: argparse.Namespace, fitter: Fitter, params: Any) -> TrainedField:
    """Reads the images to measure; fails if the data set is unusable or the split too small."""
    config = config_lib.load(args.run)
    if args.data_dir is not None:
        config.data.data_dir = args.data_dir
    sources = images.open_splits(**config.data)
    available = sources[args.split].num_examples
    count = args.images or min(DEFAULT_IMAGES, available)
    if available < max(count, MIN_IMAGES):
        raise UserError(f"--images={count}: the split {args.split} has {available} images")
    batch = sources[args.split].read(np.linspace(0, available - 1, count).astype(np.int64))
    return TrainedField(
        fitter=fitter,
        params=params,
        train=sources["train"],
        images=batch["image"],
        labels=batch["label"],
        batch_size=config.meta_learn.eval_batch_size,
        seed=config.seed,
    )


def _load_crops(args: argparse.Namespace, trained_field: TrainedField) -> dict[int, np.ndarray]:
    """Crops of --pictures by scale, as many as there are measured images."""
    count, h, w, c = trained_field.images.shape
    scales = args.scales or DEFAULT_SCALES
    shapes = [(scale * h, scale * w) for scale in scales]
    sets = crops.read_crops(args.pictures, shapes=shapes, channels=c, count=count)
    return dict(zip(scales, sets, strict=True))
