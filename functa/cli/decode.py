"""The command `functa decode`."""

import argparse
import re
import zipfile
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from functa.cli.arguments import add_data_dir, functaset_directory
from functa.data.functaset import format, reader
from functa.data.image_arrays import to_latent_batch
from functa.pipeline import load, released
from functa.runtime import image_io
from functa.runtime.batching import apply_in_batches
from functa.runtime.errors import UserError, as_user_errors
from functa.training import checkpoint

DESCRIPTION = """Decodes latents to PNG files at any resolution: of a functaset, or of functa encode.

    functa decode runs/digits --split test --ids 0,5,10-19 --scale 8 --out decoded
    functa decode runs/digits --split train --ids 7 --copy 1 --resolution 100x60 --out decoded
    functa decode cifar10_spatial --latents encoded/latents.npz --scale 4 --out decoded

An id is the index of the image in the split of the image data set: a validation image keeps its index in the
train split. Files are named SPLIT_ID_HxW.png, or latents_NUMBER_HxW.png with --latents, in the order of the file."""

_BLOCK_SIZE = 1024  # records read at once
_BATCH_PIXELS = 1 << 20  # pixels decoded at once; at least one image
_MAX_IDS = 1_000_000  # in a range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="directory of a run, or a released model")
    parser.add_argument("--split", choices=format.SPLITS)
    parser.add_argument("--ids", type=parse_ids, metavar="0,5,10-19")
    parser.add_argument("--copy", type=int, default=0, help="augmented copy; 0: the image itself")
    parser.add_argument("--latents", metavar="FILE.npz", help="in place of --split and --ids")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--resolution", type=parse_resolution, metavar="HxW")
    size.add_argument(
        "--scale", type=parse_scale, default=1, help="multiple of the training resolution"
    )
    add_data_dir(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the PNG files")


def run(args: argparse.Namespace) -> int:
    """Writes the files; returns the exit status."""
    if bool(args.latents) == bool(args.split) or bool(args.split) != bool(args.ids):
        raise UserError("give --split and --ids, or --latents")
    directory = epath.Path(args.run)
    if directory.name == "functaset" and not (directory / "config.json").exists():
        directory = directory.parent
    with as_user_errors():
        field, params = load.load_field(released.find_run(directory))
        if args.latents:
            latents = read_latents_file(args.latents, tuple(field.latent_shape))
            args.split, args.ids = "latents", range(len(latents))
        else:
            functaset = reader.open_functaset(
                functaset_directory(str(directory), args.data_dir),
                field_digest=checkpoint.digest(params),
            )
            latents = read_latents(functaset, split=args.split, ids=args.ids, copy=args.copy)
    h, w, _ = field.image_shape
    h, w = args.resolution or (h * args.scale, w * args.scale)
    decode = jax.jit(lambda latents: field(params["field"], latents, shape=(h, w)))
    batch_size = min(len(latents), max(1, _BATCH_PIXELS // (h * w)))
    out = epath.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    copy = f"_copy{args.copy}" if args.copy else ""
    files = [out / f"{args.split}_{id:06d}{copy}_{h}x{w}.png" for id in args.ids]
    for start in range(0, len(files), batch_size):
        rows = slice(start, start + batch_size)
        try:
            images = apply_in_batches(decode, latents[rows], batch_size=batch_size)
        except MemoryError as error:
            raise UserError(f"{error}; choose a smaller --resolution or --scale") from error
        for file, image in zip(files[rows], images, strict=True):
            file.write_bytes(image_io.png(image))
    print(f"{len(files)} images: {files[0]} ... {files[-1]}" if len(files) > 1 else files[0])
    return 0


def read_latents(
    functaset: reader.Functaset, *, split: str, ids: Sequence[int], copy: int
) -> np.ndarray:
    """Reads the latents of copy number `copy` of examples; only from shards that may hold them.

    Returns:
      [len(ids), i, j, d] float32.
    Raises:
      ValueError: the split lacks some of the records.
    """
    source, shards = functaset.source(split), functaset.manifest.splits[split]["shards"]
    latents: dict[int, np.ndarray] = {}
    stop = 0
    for shard in shards:
        start, stop = stop, stop + shard["records"]
        if not any(shard["ids"][0] <= id <= shard["ids"][1] for id in ids):
            continue
        for first in range(start, stop, _BLOCK_SIZE):
            records = source.read(np.arange(first, min(first + _BLOCK_SIZE, stop)))
            selected = np.isin(records["id"], ids) & (records["copy"] == copy)
            values = format.float32_latents(records)
            latents |= {int(records["id"][k]): values[k] for k in np.flatnonzero(selected)}
    missing = [id for id in ids if id not in latents]
    if missing:
        limits = [id for shard in shards for id in shard["ids"]]
        raise ValueError(
            f"{functaset.path}, split {split}: copy {copy} is missing for {len(missing)} of the {len(ids)} "
            f"ids, such as {', '.join(map(str, missing[:5]))}; the ids of the split are "
            f"{min(limits, default=None)} to {max(limits, default=None)}"
        )
    return np.stack([latents[id] for id in ids])


def read_latents_file(file: str, latent_shape: tuple[int, ...]) -> np.ndarray:
    """Latents [n, i, j, d] float32 of the array `latents` of an .npz file.

    Raises:
      ValueError: the file is no .npz file with such an array, n > 0.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            latents, _ = to_latent_batch(arrays["latents"], latent_shape=latent_shape)
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} has no latents of this field: {error}") from error
    if not len(latents):
        raise ValueError(f"{file} has no latents")
    return latents


def parse_ids(text: str) -> list[int]:
    """Parses a list of ids and ranges: "0,5,10-12" -> [0, 5, 10, 11, 12]."""
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r}: ids look like 0,5,10-19")
        if last - first >= _MAX_IDS:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r}: more than {_MAX_IDS:,} ids")
        ids += range(first, last + 1)
    return list(dict.fromkeys(ids))


def parse_resolution(text: str) -> tuple[int, int]:
    """Parses a resolution, height first: "100x60" -> (100, 60)."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a resolution looks like 128x96 (height x width)"
        )
    return int(match[1]), int(match[2])


def parse_scale(text: str) -> int:
    """Parses a positive integer."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: a scale is an integer from 1")
    return int(text)
