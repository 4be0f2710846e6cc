"""`functa export`: writes a functaset, images or a model for other programs."""

import argparse
from collections.abc import Iterator

import numpy as np
from etils import epath
from tqdm import tqdm

import functa
from functa.cli.arguments import add_data_dir, functaset_directory, new_directory
from functa.data.functaset.export import FORMATS, export
from functa.data.functaset.reader import open_functaset
from functa.diffusion import sharded_sampling
from functa.fields.decoder import make_decoder
from functa.pipeline import model_export, released
from functa.report.model_card import model_card
from functa.runtime import image_io
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Writes a functaset, images or a model for other programs.

  functa export runs/digits --to=npz --out=arrays
  functa export runs/digits --to=png --out=images
  python -m pytorch_fid images/generated images/real_test
  functa export runs/digits --to=model --out=model

--to=npz, hdf5 and parquet write the latents, labels, ids, numbers of copies and PSNR of all splits of
a functaset: SPLIT.npz, functaset.h5 or SPLIT.parquet. Latents are float16 if the functaset is, else
float32. HDF5 and Parquet need `pip install 'functa[export]'`.

--to=png writes the images that the stage generate evaluated, as two directories of 8-bit PNG files:

  OUT/generated   the decoded samples
  OUT/real_test   the images that they were compared with: the first images of the test split

Files of equal number have the same label. Images of one channel become gray files.

`pip install pytorch-fid` installs a tool that computes the FID of the two directories with the usual
Inception weights. FID depends on the number of images and on the reference split: compare values of
equally many images of the same split only. Most papers use 50,000 samples and the training split.
Fewer than 2,048 images (config.generate.samples) have a singular covariance of Inception features.

--to=model writes the field, and the classifier and the generator if they are complete, as a directory
that every command and functa.load take in place of the run. It has no latents and no checkpoints.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory; for npz, hdf5 and parquet also a functaset")
    parser.add_argument("--to", required=True, choices=[*FORMATS, "png", "model"])
    add_data_dir(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory")


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints their paths; returns the exit status."""
    out = new_directory(args.out)
    with as_user_errors():
        if args.to == "png":
            write_png(out, evaluated_images(args.run))
        elif args.to == "model":
            trained = functa.load(args.run)
            model_export.write_model(trained, out, card=model_card(trained))
            print(f"{out}: add the source and the licence of the data to README.md")
        else:
            functaset = open_functaset(
                functaset_directory(args.run, args.data_dir), field_digest=None
            )
            out.mkdir(parents=True, exist_ok=True)
            for file in export(functaset, out, to=args.to):
                print(file)
    return 0


def evaluated_images(workdir: str) -> dict[str, Iterator[np.ndarray]]:
    """The images that the stage generate evaluated, as {"generated": ..., "real_test": ...}.

    Returns:
      Iterators over images [h, w, c]: decoded samples, float32 in [0, 1], and test images, uint8.
    Raises:
      ValueError: the stage is not complete, or its samples are missing.
    """
    run = functa.load(workdir)
    if released.is_model(run.workdir):
        raise UserError(f"{workdir} is a model, which has no evaluated samples: see functa sample")
    generator = run.generator  # refuses a field that the samples do not belong to
    count, batch_size = run.metrics["generate"]["samples"], run.config.generate.sample_batch_size
    latents = sharded_sampling.read_blocks(
        run.workdir / "generate" / "samples" / "evaluation", count=count, block_size=batch_size
    )
    decode = make_decoder(generator.fitter.field, generator.field_params, batch_size=batch_size)
    test = run.images("test")
    batches = [
        slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)
    ]
    return {
        "generated": (image for rows in batches for image in decode(latents[rows])),
        "real_test": (image for rows in batches for image in test[rows]),
    }


def write_png(out: epath.Path, image_sets: dict[str, Iterator[np.ndarray]]) -> None:
    """Writes each set of images as a directory of PNG files."""
    for name, images in image_sets.items():
        (out / name).mkdir(parents=True)
        for number, image in enumerate(tqdm(images, desc=name, unit=" images")):
            (out / name / f"{number:06d}.png").write_bytes(image_io.png(image))
        print(out / name)
