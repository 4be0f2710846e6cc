"""`functa export`: writes images of a run for other programs."""

import argparse
from collections.abc import Iterator

import numpy as np
from etils import epath
from tqdm import tqdm

import functa
from functa.cli.arguments import new_directory
from functa.diffusion import sharded_sampling
from functa.fields.decoder import make_decoder
from functa.runtime import image_io
from functa.runtime.errors import as_user_errors

DESCRIPTION = """Writes images of a run for other programs.

  functa export runs/digits --to=png --out=images
  python -m pytorch_fid images/generated images/real_test

--to=png writes the images that the stage generate evaluated, as two directories of 8-bit PNG files:

  OUT/generated   the decoded samples
  OUT/real_test   the images that they were compared with: the first images of the test split

Files of equal number have the same label. Images of one channel become gray files.

`pip install pytorch-fid` installs a tool that computes the FID of the two directories with the usual
Inception weights. FID depends on the number of images and on the reference split: compare values of
equally many images of the same split only. Most papers use 50,000 samples and the training split.
Fewer than 2,048 images (config.generate.samples) have a singular covariance of Inception features.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=epath.Path, help="run directory; its stage generate is complete"
    )
    parser.add_argument("--to", required=True, choices=["png"], help="file format")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory")


def run(args: argparse.Namespace) -> int:
    out = new_directory(args.out)
    with as_user_errors():
        write_png(out, evaluated_images(args.run))
    return 0


def evaluated_images(workdir: epath.Path) -> dict[str, Iterator[np.ndarray]]:
    """The images that the stage generate evaluated, as {"generated": ..., "real_test": ...}.

    Returns:
      Iterators over images [h, w, c]: decoded samples, float32 in [0, 1], and test images, uint8.
    Raises:
      ValueError: the stage is not complete, or its samples are missing.
    """
    run = functa.load(workdir)
    generator = run.generator  # refuses a field that the samples do not belong to
    count, batch_size = run.metrics["generate"]["samples"], run.config.generate.sample_batch_size
    latents = sharded_sampling.read_blocks(
        workdir / "generate" / "samples" / "evaluation", count=count, block_size=batch_size
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
