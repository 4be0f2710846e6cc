#!/usr/bin/env python3
"""Decodes latents of a functaset to PNG files, at any resolution.

    tools/decode.py runs/digits --split test --ids 0,5,10-19 --scale 8 --out decoded
    tools/decode.py runs/digits --split train --ids 7 --copy 1 --resolution 100x60 --out decoded

An id is the index of the image in the split that its own data set has: a validation image keeps its
index in the train split. Files are named SPLIT_ID_HxW.png.

Exit status: 0; 2 for bad arguments, ids that are not there, or a run without field or functaset.
"""

import argparse
import re
import sys
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from functa.data.functaset import format, reader
from functa.pipeline import load
from functa.runtime import image_io
from functa.training import checkpoint

_BLOCK = 1024  # records looked through at once
_PIXELS = 1 << 20  # decoded at once, if one image has fewer


_MOST_IDS = 1_000_000  # in a range: each becomes a file


def parse_ids(text: str) -> list[int]:
    """`0,5,10-12` -> [0, 5, 10, 11, 12]."""
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r}: ids look like 0,5,10-19")
        if int(match[2] or match[1]) - int(match[1]) >= _MOST_IDS:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r}: more than {_MOST_IDS} ids")
        ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(ids))


def parse_resolution(text: str) -> tuple[int, int]:
    """`100x60` -> (100, 60), height first."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: a resolution looks like HxW, 128x96")
    return int(match[1]), int(match[2])


def parse_scale(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: a scale is a whole number from 1")
    return int(text)


def find(
    functa_set: reader.Functaset, *, split: str, ids: Sequence[int], copy: int
) -> dict[int, np.ndarray]:
    """{id: latents [i, j, d] float32} of copy number `copy`; looks only into shards that may hold
    them.

    Raises:
      ValueError: some are not there.
    """
    source = functa_set.source(split, cache="none")
    found: dict[int, np.ndarray] = {}
    start = 0
    for shard in functa_set.manifest.splits[split]["shards"]:
        stop = start + shard["records"]
        if any(shard["ids"][0] <= id <= shard["ids"][1] for id in ids):
            for first in range(start, stop, _BLOCK):
                records = source.read(np.arange(first, min(first + _BLOCK, stop)))
                wanted = np.isin(records["id"], ids) & (records["copy"] == copy)
                latents = format.float32_latents(records)
                for k in np.flatnonzero(wanted):
                    found[int(records["id"][k])] = latents[k]
        start = stop
    missing = [id for id in ids if id not in found]
    if missing:
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        ranges = [shard["ids"] for shard in functa_set.manifest.splits[split]["shards"]]
        least = min((ends[0] for ends in ranges), default=None)
        most = max((ends[1] for ends in ranges), default=None)
        raise ValueError(
            f"{len(missing)} of {len(ids)} ids have no copy {copy} in the split {split} of"
            f" {functa_set.path}: {few}; its ids lie in {least} to {most}"
        )
    return found


def decode(args: argparse.Namespace) -> list[epath.Path]:
    """Writes the files; returns their paths.

    Raises:
      ValueError: see the module.
    """
    run = epath.Path(args.run)
    if run.name == "functaset" and not (run / "config.json").exists():
        run = run.parent
    field, params = load.load_field(run)
    functa_set = reader.open_functaset(run / "functaset", field_digest=checkpoint.digest(params))
    latents = find(functa_set, split=args.split, ids=args.ids, copy=args.copy)
    h, w, _ = field.image_shape
    shape = args.resolution or (h * args.scale, w * args.scale)
    values_of = jax.jit(lambda params, latents: field(params, latents, shape=shape))
    out = epath.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    batch_size = max(1, _PIXELS // (shape[0] * shape[1]))
    for start in range(0, len(args.ids), batch_size):
        ids = args.ids[start : start + batch_size]
        values = np.asarray(values_of(params["field"], np.stack([latents[id] for id in ids])))
        for id, image in zip(ids, values, strict=True):
            copy = f"_copy{args.copy}" if args.copy else ""
            file = out / f"{args.split}_{id:06d}{copy}_{shape[0]}x{shape[1]}.png"
            file.write_bytes(image_io.png(image))
            files.append(file)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run with its field and functaset")
    parser.add_argument("--split", required=True, choices=("train", "validation", "test"))
    parser.add_argument("--ids", required=True, type=parse_ids, metavar="0,5,10-19")
    parser.add_argument("--copy", type=int, default=0, help="augmented copy; 0 is the image itself")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--resolution", type=parse_resolution, metavar="HxW")
    size.add_argument("--scale", type=parse_scale, default=1, help="times the training resolution")
    parser.add_argument("--out", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    try:
        files = decode(args)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    print(f"{len(files)} images: {files[0]} ... {files[-1]}" if len(files) > 1 else str(files[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
