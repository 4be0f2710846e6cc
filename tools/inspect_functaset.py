#!/usr/bin/env python3
"""Says what is in a functaset and shows some of its images, decoded by the field of its run.

    tools/inspect_functaset.py runs/digits/functaset
    tools/inspect_functaset.py FUNCTASET --field runs/digits --split train --images 100 --sheet
    FILE.png

The sheet is written beside the functaset, as functaset_SPLIT.png, unless --sheet names another
file. Where no run lies around the functaset and --field names none, only the table is printed.

Exit status: 0; 2 for bad arguments, an incomplete functaset, or a field that did not make it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from functa.data.functaset import format, reader

_SHEET_SIDE = 64  # pixels; smaller images are enlarged to about this side


def describe(functa_set: reader.Functaset) -> Iterator[str]:
    """Lines of the table."""
    manifest = functa_set.manifest
    shape = "x".join(map(str, manifest.latent_shape))
    width = int(np.prod(manifest.latent_shape))
    yield f"functaset   {functa_set.path}"
    yield f"config      {manifest.config['name'] or '(without a name)'}, seed {manifest.config['seed']}"
    yield f"field       {manifest.field_digest}"
    yield f"latents     {shape} = {width} numbers, {manifest.dtype}"
    yield f"classes     {', '.join(manifest.class_names) or 'unknown'}"
    yield ""
    yield f"{'split':12}{'records':>10}{'shards':>8}{'bytes':>16}{'bytes each':>12}{'psnr':>9}"
    for name, split in manifest.splits.items():
        size = sum(shard["bytes"] for shard in split["shards"])
        row = f"{name:12}{split['examples']:10}{len(split['shards']):8}{size:16,}"
        if split["examples"]:
            row += f"{size / split['examples']:12.1f}{split['psnr']:6.2f} dB"
        yield row
    yield ""
    yield f"{'channel':>12}{'mean':>12}{'std':>12}   of the train split"
    for channel, (mean, std) in enumerate(zip(manifest.mean, manifest.std, strict=True)):
        yield f"{channel:12}{mean:12.5f}{std:12.5f}"
    yield f"{'all':>12}{manifest.scalar_mean:12.5f}{manifest.scalar_std:12.5f}"


def write_sheet(
    functa_set: reader.Functaset, run: epath.Path, *, split: str, images: int, file: epath.Path
) -> str:
    """Decodes `images` records, spread over the split, to one PNG; returns what it shows.

    Raises:
      ValueError: the run has no field, or another than the one that made the functaset.
    """
    import jax

    from functa.pipeline import load
    from functa.runtime import image_io
    from functa.training import checkpoint

    field, params = load.load_field(run)
    digest = checkpoint.digest(params)
    reader.open_functaset(functa_set.path, field_digest=digest)  # refuses another field
    source = functa_set.source(split, cache="none")
    if not source.num_examples:
        raise ValueError(f"{functa_set.path}: the split {split} has no records to show")
    count = min(images, source.num_examples)
    records = source.read(np.linspace(0, source.num_examples - 1, count).astype(np.int64))
    values = np.asarray(jax.jit(field)(params["field"], format.float32_latents(records)))
    side = max(values.shape[1:3])
    values = image_io.enlarge(values, max(1, _SHEET_SIDE // side))
    file.write_bytes(image_io.png(image_io.sheet(values, gap=2)))
    return f"{count} of {source.num_examples} {split} records, decoded: {file}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="directory of a functaset, or of a run that holds one")
    parser.add_argument("--field", metavar="RUN", help="run whose field decodes it")
    parser.add_argument("--split", default="test", help="split to show (default: %(default)s)")
    parser.add_argument(
        "--images", type=int, default=64, help="images to show (default: %(default)s)"
    )
    parser.add_argument("--sheet", metavar="FILE.png", help="where to write them")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error(f"--images must be at least 1, not {args.images}")
    path = epath.Path(args.path)
    if (path / "functaset").is_dir():
        path = path / "functaset"
    try:
        functa_set = reader.open_functaset(path, field_digest=None)
        functa_set.num_examples(args.split)  # refuses an unknown split
        print("\n".join(describe(functa_set)))
        run = epath.Path(args.field) if args.field else path.resolve().parent
        if not (args.field or args.sheet or (run / "config.json").exists()):
            print(f"\nno sheet of images: {run} is not the directory of a run, name one by --field")
            return 0
        default = path.resolve().parent / f"functaset_{args.split}.png"
        file = epath.Path(args.sheet) if args.sheet else default
        print("\n" + write_sheet(functa_set, run, split=args.split, images=args.images, file=file))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
