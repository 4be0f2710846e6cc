"""The command `functa inspect`."""

import argparse
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from functa.cli.arguments import add_data_dir, functaset_directory
from functa.data.functaset import format, reader
from functa.pipeline import load, released
from functa.runtime import image_io
from functa.runtime.errors import UserError, as_user_errors
from functa.training import checkpoint

DESCRIPTION = """Prints a summary of a functaset and writes a sheet of images that the field of its run decodes.

    functa inspect runs/digits
    functa inspect FUNCTASET --field runs/digits --split train --images 100 --sheet FILE.png

The sheet is written next to the functaset, as functaset_SPLIT.png; for a released model as NAME_SPLIT.png
in the current directory. Without a run, only the summary is printed."""

_MIN_SIDE = 64  # pixels; smaller images are enlarged to about this side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="directory of a functaset or of a run that has one")
    parser.add_argument("--field", metavar="RUN", help="run whose field decodes the latents")
    parser.add_argument(
        "--split", help="split to show; default: test, or another one that has records"
    )
    parser.add_argument(
        "--images", type=int, default=64, help="number of images (default: %(default)s)"
    )
    add_data_dir(parser)
    parser.add_argument("--sheet", metavar="FILE.png", help="file of the sheet of images")


def run(args: argparse.Namespace) -> int:
    """Prints the summary and writes the sheet; returns the exit status."""
    if args.images < 1:
        raise UserError(f"--images must be at least 1, not {args.images}")
    path = functaset_directory(args.path, args.data_dir)
    is_released = args.path in released.names() and not epath.Path(args.path).is_dir()
    with as_user_errors():
        functaset = reader.open_functaset(path, field_digest=None)
        counts = {name: functaset.num_examples(name) for name in ("test", "validation", "train")}
        split = args.split or next(filter(counts.get, counts), "test")
        total = functaset.num_examples(split)  # raises for an unknown split
        print("\n".join(summary_lines(functaset)))
        run_directory = path.resolve().parent
        if args.field or is_released:
            run_directory = released.find_run(args.field or args.path)
        if not (args.field or args.sheet or (run_directory / "config.json").exists()):
            print(f"\nno sheet of images: {run_directory} is not a run; name one by --field")
            return 0
        default = path.resolve().parent / f"{path.resolve().name}_{split}.png"
        if is_released:
            default = epath.Path(f"{args.path}_{split}.png")
        file = epath.Path(args.sheet) if args.sheet else default
        count = write_sheet(
            functaset, run_directory, split=split, max_images=args.images, file=file
        )
    print(f"\n{count} of {total} {split} records, decoded: {file}")
    return 0


def summary_lines(functaset: reader.Functaset) -> Iterator[str]:
    """Lines of the summary."""
    manifest = functaset.manifest
    shape = "x".join(map(str, manifest.latent_shape))
    yield f"functaset   {functaset.path}"
    yield f"config      {manifest.config['name'] or '(without a name)'}, seed {manifest.config['seed']}"
    yield f"field       {manifest.field_digest}"
    yield f"latents     {shape} = {np.prod(manifest.latent_shape)} numbers, {manifest.dtype}"
    yield f"classes     {', '.join(manifest.class_names) or 'unknown'}"
    yield ""
    yield f"{'split':12}{'records':>10}{'shards':>8}{'bytes':>16}{'bytes/record':>14}{'psnr':>9}"
    for name, split in manifest.splits.items():
        size = sum(shard["bytes"] for shard in split["shards"])
        row = f"{name:12}{split['examples']:10}{len(split['shards']):8}{size:16,}"
        if split["examples"]:
            row += f"{size / split['examples']:14.1f}{split['psnr']:6.2f} dB"
        yield row
    yield ""
    yield f"{'channel':>12}{'mean':>12}{'std':>12}   of the train split"
    for channel, (mean, std) in enumerate(zip(manifest.mean, manifest.std, strict=True)):
        yield f"{channel:12}{mean:12.5f}{std:12.5f}"
    yield f"{'all':>12}{manifest.scalar_mean:12.5f}{manifest.scalar_std:12.5f}"


def write_sheet(
    functaset: reader.Functaset,
    run_directory: epath.Path,
    *,
    split: str,
    max_images: int,
    file: epath.Path,
) -> int:
    """Writes a PNG of decoded records, evenly spaced in the split; returns their number.

    Raises:
      ValueError: the run has no field, or its field did not make the functaset; the split is empty.
    """
    field, params = load.load_field(run_directory)
    problem = reader.field_problem(functaset.path, functaset.manifest, checkpoint.digest(params))
    if problem:
        raise ValueError(problem)
    source = functaset.source(split)
    if not source.num_examples:
        raise ValueError(f"{functaset.path}: the split {split} has no records to show")
    count = min(max_images, source.num_examples)
    records = source.read(np.linspace(0, source.num_examples - 1, count).astype(np.int64))
    images = np.asarray(jax.jit(field)(params["field"], format.float32_latents(records)))
    images = image_io.enlarge(images, max(1, _MIN_SIDE // max(images.shape[1:3])))
    file.write_bytes(image_io.png(image_io.sheet(images, gap=2)))
    return count
