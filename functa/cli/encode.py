"""`functa encode`: encodes pictures or a data set with a trained field."""

import argparse
import csv
import functools
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath

import functa
from functa.cli.arguments import new_directory
from functa.data import image_arrays, picture_files
from functa.data.functaset import reader
from functa.data.functaset.format import STORAGE_DTYPES
from functa.data.picture_files import PictureSource, find_pictures, read_picture
from functa.fields.pixels import to_float
from functa.pipeline import encode_sources
from functa.pipeline.trained_run import TrainedRun
from functa.runtime import image_io
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Encodes pictures, or a data set, with the field of a run.

    functa encode runs/digits scan.png --out=encoded
    functa encode RUN photo.jpg FOLDER --resize=stretch --out=encoded
    functa encode RUN --source=FOLDER --out=functaset
    functa encode RUN --source=cifar10 --data-dir=data --dtype=int8 --out=functaset

A picture is a PNG, JPEG, WebP, BMP, GIF or TIFF file of any size, or a folder of them. --resize=crop
cuts out the largest centered part that has the aspect ratio of the field's images, and resizes it;
--resize=stretch resizes the whole picture. The PSNR is that of the resized picture.

With PICTURE, the files in OUT are
  latents.npz   latents [n, i, j, d] float32; names [n]; psnr [n] in dB
  sheet.png     one row per picture: resized picture, reconstruction, and decoded at four times the
                resolution

With --source, OUT is a functaset. FOLDER holds pictures, or class folders FOLDER/CLASS/PICTURE, and
becomes the split train. A name is that of a data set in --data-dir, made by `functa prepare` or TFDS;
its images must have the size of the field's images. Images are not augmented. The same command
resumes. Damaged pictures in a folder are left out and named. `functa inspect` shows the result, and
psnr.csv lists the PSNR of every picture of a folder.
"""
_SHEET_PICTURES = 64
_SCALE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory, or a released model")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="files or folders")
    parser.add_argument("--source", metavar="FOLDER|NAME", help="encode to a functaset")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="of a data set (data)")
    parser.add_argument("--dtype", choices=STORAGE_DTYPES, default="float16", help="(float16)")
    parser.add_argument("--resize", choices=image_arrays.RESIZE, default="crop")
    parser.add_argument("--out", required=True, metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Writes the files; returns the exit status."""
    if bool(args.pictures) == bool(args.source):
        raise UserError("give the paths of pictures, or a folder or data set by --source")
    with as_user_errors():
        trained = functa.load(args.run)
        if args.source:
            write_functaset(trained, args)
        else:
            write_pictures(trained, args)
    return 0


def write_pictures(trained: TrainedRun, args: argparse.Namespace) -> None:
    """Writes latents and a sheet, and prints the PSNR of every picture."""
    out, files = new_directory(args.out), readable_pictures(trained, args.pictures)
    images = np.stack(
        [read_picture(file, image_shape=trained.image_shape, resize=args.resize) for file in files]
    )
    latents = trained.encode(images)
    reconstructions = trained.decode(latents)
    psnr = functa.psnr(reconstructions, images)
    out.mkdir(parents=True, exist_ok=True)
    names = np.asarray([str(file) for file in files])
    with (out / "latents.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, latents=latents, names=names, psnr=psnr)
    shown = slice(_SHEET_PICTURES)
    h, w, _ = trained.image_shape
    columns = [
        image_io.enlarge(to_float(images[shown]), _SCALE),
        image_io.enlarge(reconstructions[shown], _SCALE),
        trained.decode(latents[shown], size=(_SCALE * h, _SCALE * w)),
    ]
    rows = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    (out / "sheet.png").write_bytes(image_io.png(image_io.sheet(rows, gap=2, columns=3)))
    for name, value in zip(names, psnr, strict=True):
        print(f"{value:6.2f} dB  {name}")
    if len(files) > 1:
        print(f"{psnr.mean():6.2f} dB  mean of {len(files)} pictures")
    print(f"{out / 'latents.npz'}\n{out / 'sheet.png'}")


def readable_pictures(trained: TrainedRun, paths: Sequence[str]) -> list[pathlib.Path]:
    """The pictures of `paths`. Damaged ones in folders are left out and named.

    Raises:
      UserError: see picture_files.find_pictures; or no picture in the folders is readable.
    """
    files, named = find_pictures(paths), set(map(pathlib.Path, paths))
    in_folders = [file for file in files if file not in named]
    damaged = picture_files.damaged(in_folders, channels=trained.image_shape[2])
    for message in damaged.values():
        _say(f"left out: {message}")
    if len(damaged) == len(files):
        raise UserError(f"no readable picture in {', '.join(paths)}")
    return [file for file in files if file not in damaged]


def write_functaset(trained: TrainedRun, args: argparse.Namespace) -> None:
    """Writes a functaset, and psnr.csv for the pictures of a folder."""
    if pathlib.Path(args.source).is_dir():
        splits, data, names = encode_sources.open_folder(
            trained, args.source, resize=args.resize, say=_say
        )
    else:
        splits, data, names = encode_sources.open_data_set(
            trained, args.source, data_dir=args.data_dir
        )
    metrics = encode_sources.encode_sources(
        trained,
        args.out,
        splits=splits,
        data=data,
        class_names=names,
        dtype=args.dtype,
        say=functools.partial(print, flush=True),
    )
    if isinstance(splits["train"], PictureSource):
        files = splits["train"].files
        records = reader.open_functaset(args.out, field_digest=None).source("train")
        rows = records.read(np.arange(len(files)))["psnr"]
        with (epath.Path(args.out) / "psnr.csv").open("w") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["psnr", "file"])
            table.writerows((f"{psnr:.3f}", file) for file, psnr in zip(files, rows, strict=True))
    print(f"{args.out}: {metrics['examples']:,} examples, mean PSNR {metrics['train_psnr']:.2f} dB")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
