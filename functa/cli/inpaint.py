"""functa inpaint: reconstructs test images from a part of their pixels."""

import argparse
import math

import numpy as np

import functa
from functa.cli.arguments import new_directory
from functa.diffusion.inpainter import (
    MAX_SAMPLES,
    METHODS,
    Inpainter,
    compare_methods,
    mean_training_image,
)
from functa.diffusion.observation import DEGRADATIONS, validate_pooling
from functa.fields.pixels import to_float
from functa.fields.psnr import psnr
from functa.runtime import config as config_lib
from functa.runtime import image_io
from functa.runtime.batching import apply_in_batches
from functa.runtime.config import range_errors
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Reconstructs test images from a part of their pixels, with the generator of a run as prior.

Tasks: half (the left half is hidden), random10 (a random tenth of the pixels is visible), lowres4
(the means of 4x4 blocks are visible), noisy (all pixels, with noise of standard deviation 0.2).

The reconstruction without prior fits latents to the visible pixels by the inner loop; latents that no
visible pixel depends on stay zero. The mean training image is a second baseline that ignores the
image. With the prior, several samples are drawn; one of them looks like an image, and their mean has
the best PSNR. Visible pixels are kept. PSNR (dB, data range 1, mean and standard error over images)
is that of the hidden pixels; for lowres4 and noisy, of all pixels.

examples:
  functa inpaint runs/digits --task=half --out=half
  functa inpaint runs/digits --task=random10 --images=360 --samples=16 --out=tenth

files:
  inpainting.png    one row per image: original, visible part, without prior, mean training image,
                    one sample, mean of the samples
  inpainting.json   the table and the settings
"""
_SHEET_IMAGES = 16
_MIN_SHEET_SIDE = 32  # pixels; smaller images are enlarged to about this side
_BATCH_SAMPLES = 256
_BATCH_PIXELS = 1 << 18  # of all samples of a batch: derivatives store every layer of every pixel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="run directory with a complete stage generate, or a released model"
    )
    parser.add_argument("--task", required=True, choices=tuple(DEGRADATIONS))
    parser.add_argument(
        "--images", type=int, default=64, help="evenly spaced in the test split (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=8, help="of each image (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="noise levels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of masks, noise and samples")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the images, if they moved")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory")


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints the table; returns the exit status."""
    out = new_directory(args.out)
    validate_arguments(args)
    task = DEGRADATIONS[args.task]
    with as_user_errors():
        trained = functa.load(args.run, data_dir=args.data_dir)
        validate_pooling(task, trained.image_shape)
        test = trained.images("test")
        if args.images > len(test):
            raise UserError(f"--images={args.images} must be at most {len(test)}, the test images")
        image_ids = np.linspace(0, len(test) - 1, args.images).astype(np.int64)
        images = to_float(test[image_ids])
        mean_image = mean_training_image(trained.images("train").source, trained.image_shape)
        inpainter = Inpainter(trained.generator, task, steps=args.steps, seed=args.seed)
    result = compare_in_batches(
        inpainter, images, image_ids=image_ids, samples=args.samples, mean_image=mean_image
    )
    methods = {name: method_metrics(result, name) for name in METHODS}
    out.mkdir(parents=True, exist_ok=True)
    (out / "inpainting.png").write_bytes(comparison_sheet(images, result))
    settings = {
        name: getattr(args, name) for name in ("task", "images", "samples", "steps", "seed")
    }
    digest = trained.generator.functaset.manifest.digest
    record = settings | {"functaset_digest": digest, "methods": methods}
    config_lib.write_json(out / "inpainting.json", record)
    print(f"{args.task}, {args.images} test images; PSNR in dB, mean and standard error")
    for name, row in methods.items():
        print(
            f"{METHODS[name]:26}{row['psnr']:7.2f} +-{row['standard_error']:5.2f}"
            f"   gain{row['gain']:7.2f} +-{row['gain_standard_error']:5.2f}"
        )
    print(out / "inpainting.png")
    return 0


def validate_arguments(args: argparse.Namespace) -> None:
    """Raises UserError with all arguments that are out of range."""
    errors = range_errors(
        {
            "--images": (args.images, 2, 10**6),
            "--samples": (args.samples, 1, MAX_SAMPLES),
            "--steps": (args.steps, 1, 10_000),
            "--seed": (args.seed, 0, 2**32 - 1),
        }
    )
    if errors:
        raise UserError("\n".join(errors))


def compare_in_batches(
    inpainter: Inpainter,
    images: np.ndarray,
    *,
    image_ids: np.ndarray,
    samples: int,
    mean_image: np.ndarray,
) -> dict[str, np.ndarray]:
    """`inpainter.compare_methods` in batches of one size; an image's id is its row in the test split."""
    batch_samples = min(_BATCH_SAMPLES, _BATCH_PIXELS // math.prod(images.shape[1:3]))
    return apply_in_batches(
        lambda images, image_ids: compare_methods(
            inpainter, images, image_ids=image_ids, samples=samples, mean_image=mean_image
        ),
        images,
        image_ids,
        batch_size=min(len(images), max(1, batch_samples // samples)),
    )


def method_metrics(result: dict[str, np.ndarray], method: str) -> dict[str, float]:
    """PSNR of a method, and its gain over the reconstruction without prior, in dB."""
    mse = result[f"mse_{method}"]
    values, gain = psnr(mse), psnr(mse) - psnr(result["mse_no_prior"])
    return {
        "psnr": float(values.mean()),
        "standard_error": _standard_error(values),
        "gain": float(gain.mean()),
        "gain_standard_error": _standard_error(gain),
        "psnr_of_mean_mse": float(psnr(mse.mean(dtype=np.float64))),
    }


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def comparison_sheet(images: np.ndarray, result: dict[str, np.ndarray]) -> bytes:
    """PNG with one row per image: original, visible part, and every method."""
    columns = [images, result["observed"], *(result[name] for name in METHODS)]
    cells = np.stack([column[:_SHEET_IMAGES] for column in columns], axis=1).clip(0, 1)
    cells = cells.reshape(-1, *images.shape[1:])
    factor = max(1, _MIN_SHEET_SIDE // max(images.shape[1:3]))
    page = image_io.sheet(image_io.enlarge(cells, factor), gap=2, columns=len(columns))
    return image_io.png(page)
