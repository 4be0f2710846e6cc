"""`functa encode`: encodes pictures with a trained field."""

import argparse

import numpy as np
from etils import epath

import functa
from functa.data import image_arrays
from functa.data.picture_files import find_pictures, read_picture
from functa.runtime import image_io
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Encodes pictures with the field of a run.

    functa encode runs/digits scan.png --out=encoded
    functa encode RUN photo.jpg FOLDER --resize=stretch --out=encoded

A picture is a PNG, JPEG, WebP, BMP, GIF or TIFF file of any size, or a folder of them. --resize=crop
cuts out the largest centered part that has the aspect ratio of the field's images, and resizes it;
--resize=stretch resizes the whole picture.

files:
  latents.npz   latents [n, i, j, d] float32; names [n]; psnr [n] in dB, of the resized pictures
  sheet.png     one row per picture: resized picture, reconstruction, and decoded at four times the
                resolution
"""
_SHEET_PICTURES = 64
_SCALE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory whose stage meta_learn is complete")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files or folders")
    parser.add_argument("--resize", choices=image_arrays.RESIZE, default="crop")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory")


def run(args: argparse.Namespace) -> int:
    """Writes the files, and prints the PSNR of every picture; returns the exit status."""
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} exists and is not an empty directory: name another one")
    with as_user_errors():
        trained = functa.load(args.run)
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
        image_io.enlarge(images[shown] / np.float32(255), _SCALE),
        image_io.enlarge(reconstructions[shown], _SCALE),
        trained.decode(latents[shown], size=(_SCALE * h, _SCALE * w)),
    ]
    rows = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    (out / "sheet.png").write_bytes(image_io.png(image_io.sheet(rows, gap=2, columns=3)))
    for name, value in zip(names, psnr, strict=True):
        print(f"{value:6.2f} dB  {name}")
    print(
        f"{psnr.mean():6.2f} dB  mean of {len(files)} pictures\n{out / 'latents.npz'}\n{out / 'sheet.png'}"
    )
    return 0
