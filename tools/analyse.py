#!/usr/bin/env python3
"""Asks the trained field of a run how it fits, what its latents cost and how they behave.

    tools/analyse.py runs/digits
    tools/analyse.py runs/digits --measure steps,quantisation --images 360
    tools/analyse.py RUN --measure resolution --pictures FOLDER_OF_PICTURES

Measures: steps (PSNR by inner steps), free (latents refined by Adam), quantisation (PSNR by bits),
rate_distortion (PSNR by bytes, beside PCA, JPEG and WebP; drawn as a chart), resolution (decoded
above the training resolution, beside bicubic; needs --pictures), latents (neighbours, midpoints,
noise). Only the stage meta_learn must be done; the data set of the run is read, a functaset is not.

--json writes one object: run, split, field_digest, and tables: {name: {title, note, images,
columns: {key: {unit, meaning}}, rows: [{key: value}]}}. A unit "%" is stored as a fraction; what is
not there, or not finite, is null.

Exit status: 0; 2 for bad arguments, a run without a field, or data or pictures that do not serve.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from etils import epath

IMAGES = 256  # of the split, if it has so many and --images does not say otherwise


def parse_scales(text: str) -> list[int]:
    """`2,4` -> [2, 4]."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: scales look like 2,4") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", help="directory of a run whose stage meta_learn is done")
    made.add_argument(
        "--measure",
        metavar="A,B",
        help="what to measure; all by default, resolution only with --pictures",
    )
    made.add_argument("--split", default="test", help="whose images (default: %(default)s)")
    made.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"how many, evenly spread over the split; by default {IMAGES}, or all of fewer",
    )
    made.add_argument("--pictures", metavar="FOLDER", help="PNG and JPEG files to cut up")
    made.add_argument(
        "--scales",
        type=parse_scales,
        metavar="2,4",
        help="times the training resolution, for the measure resolution (default: 2,4)",
    )
    made.add_argument("--data_dir", metavar="DIR", help="where the data set lies now")
    made.add_argument("--json", metavar="FILE", help="write JSON; - instead of the tables")
    made.add_argument(
        "--chart",
        metavar="FILE.svg",
        help="where to draw the rate-distortion curve (default: RUN/analysis.svg)",
    )
    return made


def _may_write(folder: epath.Path) -> bool:
    """False where it is known that it would fail; of an object store nothing is known."""
    return "://" in str(folder) or os.access(folder, os.W_OK)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    from functa.evaluation.analysis import measures, rate_chart, table

    names = [name for name in measures.MEASURES if name != "resolution" or args.pictures]
    if args.measure is not None:
        names = list(dict.fromkeys(filter(None, args.measure.split(","))))
    request = measures.Request(
        run=args.run, measures=names, split=args.split, images=args.images, default_images=IMAGES,
        pictures=args.pictures, scales=args.scales or (2, 4), data_dir=args.data_dir,
    )  # fmt: skip
    needless = {"--scales": ("resolution", args.scales), "--chart": ("rate_distortion", args.chart)}
    problems = [
        f"{option} is for the measure {name}, which is not asked for"
        for option, (name, given) in needless.items()
        if given and name not in names
    ]
    chart_file = epath.Path(args.chart or epath.Path(args.run) / "analysis.svg")
    written = {"--chart": chart_file if "rate_distortion" in names else None}
    written["--json"] = epath.Path(args.json) if args.json not in (None, "-") else None
    if not args.chart and not epath.Path(args.run).is_dir():
        del written["--chart"]  # that there is no such run is told below
    for option, file in written.items():
        if file is not None and not file.parent.is_dir():
            problems.append(f"{option}: there is no folder {file.parent}")
        elif file is not None and (file.is_dir() or not _may_write(file.parent)):
            problems.append(f"{option}: {file} cannot be written")
    try:
        subject, field_digest = measures.open_subject(request, problems)
    except (ValueError, OSError) as error:
        arguments.error(str(error))
    tables: dict[str, table.Table] = {}
    for name in names:
        start = time.monotonic()
        tables |= measures.MEASURES[name](subject)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    result = {
        "run": str(args.run), "split": args.split, "field_digest": field_digest,
        "tables": {name: one.to_json() for name, one in tables.items()},
    }  # fmt: skip
    if args.json == "-":
        print(json.dumps(result, indent=1, allow_nan=False))
    else:
        print("\n\n".join("\n".join(one.lines()) for one in tables.values()))
        if args.json:
            epath.Path(args.json).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if "rate_distortion" in tables:
        chart_file.write_text(rate_chart.draw(tables["rate_distortion"]))
        print(f"chart: {chart_file}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
