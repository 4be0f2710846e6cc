"""`functa encode`: encodes pictures or a data set with a trained field."""

import argparse
import functools
import pathlib

import numpy as np
from etils import epath

import functa
from functa.cli.arguments import new_directory
from functa.data import image_arrays
from functa.data.functaset import reader
from functa.data.functaset.format import STORAGE_DTYPES
from functa.data.picture_files import find_classes, find_pictures, read_picture
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
resumes. `functa inspect` shows the result, and psnr.csv lists the PSNR of every picture of a folder.
"""
_SHEET_PICTURES = 64
_SCALE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory whose stage meta_learn is complete")
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
    out = new_directory(args.out)
    files = find_pictures(args.pictures)
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
    print(f"{psnr.mean():6.2f} dB  mean of {len(files)} pictures")
    print(f"{out / 'latents.npz'}\n{out / 'sheet.png'}")


def write_functaset(trained: TrainedRun, args: argparse.Namespace) -> None:
    """Writes a functaset, and psnr.csv for the pictures of a folder."""
    files = []
    if pathlib.Path(args.source).is_dir():
        splits, data, names = encode_sources.open_folder(trained, args.source, resize=args.resize)
        files = find_classes(args.source)[0]
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
    if files:
        records = reader.open_functaset(args.out, field_digest=None).source("train")
        rows = records.read(np.arange(len(files)))["psnr"]
        lines = [f"{value:.3f},{file}" for file, value in zip(files, rows, strict=True)]
        (epath.Path(args.out) / "psnr.csv").write_text("\n".join(["psnr,file", *lines]) + "\n")
    print(f"{args.out}: {metrics['examples']:,} examples, mean PSNR {metrics['train_psnr']:.2f} dB")
