"""functa sample: draws new images from a trained generator."""

import argparse
import json
import math
import re

import numpy as np
from etils import epath

import functa
from functa.cli.arguments import add_data_dir, integers, new_directory
from functa.diffusion.sampled_functaset import write_functaset
from functa.diffusion.solvers import SOLVERS_WITHOUT_SETTINGS
from functa.diffusion.trained_generator import TrainedGenerator
from functa.pipeline.trained_run import TrainedRun
from functa.runtime import image_io
from functa.runtime.config import range_errors
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Draws new images from the generator of a run, at any resolution.

Sample n is of class n modulo the number of classes, and depends on the seed, n and the sampling
settings alone: a larger --count adds samples and changes none. A sheet has one row per class. It is
square for one class, for --classes=none, and for fewer samples than classes. A sheet shows at most
32 samples per class, 1,024 of one class, and 100 million pixels.

examples:
  functa sample runs/digits --out=samples
  functa sample runs/digits --count=64 --classes=3,8 --guidance=2 --steps=32 --scale=4 --out=samples
  functa sample runs/digits --classes=none --functaset --animation --out=samples
  functa sample runs/digits --interpolate=0,13 --out=strip            # between samples 0 and 13
  functa sample runs/digits --interpolate=test:5,test:9 --out=strip   # between two test images

files:
  samples_4x.png         a sheet at four times the training resolution
  interpolation_4x.png   nine steps between two images
  animation.gif          the denoised latents of every step, ten samples per class, at the largest
                         scale whose images have at most 512 pixels per side
  functaset/             the samples as the split train; their PSNR is 0, as they fit no image
  samples.json           the settings, and the class of every sample
"""
_SHEET_SAMPLES_PER_CLASS = 32
_ANIMATION_SAMPLES_PER_CLASS = 10
_MAX_PIXELS = 10**8  # of a sheet, or of all frames of an animation
_MAX_ANIMATION_SIDE = 512  # pixels of one image
_INTERPOLATION_STEPS = 9
_FRAME_SECONDS, _LAST_FRAME_SECONDS = 0.1, 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", help="run directory with a complete stage generate, or a released model"
    )
    parser.add_argument("--count", type=int, default=100, help="samples (default: %(default)s)")
    parser.add_argument(
        "--classes",
        type=parse_classes,
        default="all",
        metavar="0,3|all|none",
        help="none: of unknown class",
    )
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="default: that of the run")
    parser.add_argument("--steps", type=int, metavar="N", help="default: that of the run")
    parser.add_argument(
        "--solver", choices=SOLVERS_WITHOUT_SETTINGS, help="default: that of the run"
    )
    parser.add_argument("--seed", type=int, help="default: that of the run")
    parser.add_argument("--scale", type=integers(least=1), default=[1, 2, 4], metavar="1,2,4")
    parser.add_argument("--functaset", action="store_true", help="also write the latents")
    parser.add_argument("--animation", action="store_true", help="also write animation.gif")
    parser.add_argument(
        "--interpolate", type=parse_pair, metavar="A,B", help="write an interpolation only"
    )
    add_data_dir(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty directory")


def parse_classes(text: str) -> str | list[int]:
    """`0,3` -> [0, 3]; `all` and `none` stay."""
    return text if text in ("all", "none") else integers(least=0)(text)


def parse_pair(text: str) -> tuple[bool, int, int]:
    """`3,17` -> (False, 3, 17), samples; `test:3,test:17` -> (True, 3, 17), images of the test split."""
    match = re.fullmatch(r"(test:)?(\d+),(test:)?(\d+)", text)
    if not match or match[1] != match[3]:
        raise argparse.ArgumentTypeError(f"{text!r}: use a pair as in 3,17 or test:3,test:17")
    return bool(match[1]), int(match[2]), int(match[4])


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints their paths; returns the exit status."""
    out = new_directory(args.out)
    if args.interpolate and (args.animation or args.functaset):
        raise UserError("--interpolate cannot be combined with --animation or --functaset")
    with as_user_errors():
        trained = functa.load(args.run, data_dir=args.data_dir)
        seed = trained.config.seed if args.seed is None else args.seed
        classes = choose_classes(args, trained.generator, seed=seed)
        generator = trained.generator.with_sampling(
            steps=args.steps,
            solver=args.solver,
            # Guidance does not change samples of the null class, and costs a second evaluation.
            guidance_scale=1.0 if args.classes == "none" else args.guidance,
        )
        if args.interpolate:
            latents = interpolate(trained, generator, args.interpolate, classes, seed=seed)
            files = {
                f"interpolation_{scale}x.png": image_io.png(
                    image_io.sheet(decode(trained, latents, scale), gap=1, columns=len(latents))
                )
                for scale in args.scale
            }
        else:
            files = sample(args, trained, generator, classes, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
        print(out / name)
    return 0


def choose_classes(args: argparse.Namespace, trained: TrainedGenerator, *, seed: int) -> np.ndarray:
    """Labels of the classes [k] int32 that are sampled in turn.

    Raises:
      UserError: arguments that this generator cannot serve; the message lists all of them.
    """
    generator = trained.generator
    h, w, _ = trained.field.image_shape
    max_scale = math.isqrt(_MAX_PIXELS // (h * w))
    errors = range_errors(
        {
            "--count": (args.count, 1, 10**6),
            "--interpolate": (max(args.interpolate[1:]) if args.interpolate else 0, 0, 2**31 - 1),
            "--seed": (seed, 0, 2**32 - 1),
            "--scale": (max(args.scale), 1, max_scale),
        }
    )
    classes = list(range(generator.num_classes)) if args.classes == "all" else args.classes
    if args.classes == "none":
        classes = [generator.null_class]
        if generator.label_dropout == 0:
            errors.append(
                "--classes=none needs a generator that was trained with generate.label_dropout above 0"
            )
        if args.guidance not in (None, 1):
            errors.append("--guidance has no effect with --classes=none: leave one of them out")
    elif unknown := [label for label in classes if label >= generator.num_classes]:
        errors.append(
            f"--classes={','.join(map(str, unknown))}: use classes 0 to {generator.num_classes - 1}"
        )
    if errors:
        raise UserError("\n".join(errors))
    return np.asarray(classes, np.int32)


def sample(
    args: argparse.Namespace,
    trained: TrainedRun,
    generator: TrainedGenerator,
    classes: np.ndarray,
    *,
    seed: int,
) -> dict[str, bytes]:
    """Samples, and writes the functaset. Returns {name: content} of the other files."""
    numbers = np.arange(args.count, dtype=np.int32)
    labels = classes[numbers % len(classes)]
    batch_size = trained.config.generate.sample_batch_size
    latents = generator.sample(seed=seed, numbers=numbers, labels=labels, batch_size=batch_size)
    files = {}
    h, w, _ = trained.image_shape
    for scale in args.scale:
        pixels = scale**2 * h * w
        shown = select_shown(args.count, len(classes), _SHEET_SAMPLES_PER_CLASS, pixels=pixels)
        page = arrange(decode(trained, latents[shown], scale), shown, len(classes))
        files[f"samples_{scale}x.png"] = image_io.png(page)
    if args.animation:
        scales = [scale for scale in args.scale if scale * max(h, w) <= _MAX_ANIMATION_SIDE]
        scale = max(scales or [min(args.scale)])
        pixels = generator.generator.sampling.steps * scale**2 * h * w
        shown = select_shown(args.count, len(classes), _ANIMATION_SAMPLES_PER_CLASS, pixels=pixels)
        trajectory = generator.sample_trajectory(
            seed=seed, numbers=shown, labels=labels[shown], batch_size=batch_size
        )
        pages = [arrange(decode(trained, step, scale), shown, len(classes)) for step in trajectory]
        files["animation.gif"] = animation(pages)
    stored_labels = np.where(labels < generator.generator.num_classes, labels, -1)  # -1: unknown
    settings = {
        "run": trained.config.name,
        "functaset_digest": generator.functaset.manifest.digest,
        "seed": seed,
        **generator.generator.sampling.settings,
    }
    if args.functaset:
        write_functaset(
            epath.Path(args.out) / "functaset",
            generator.functaset.manifest,
            latents=latents,
            labels=stored_labels,
            provenance=settings,
        )
    record = settings | {"labels": stored_labels.tolist()}
    return files | {"samples.json": json.dumps(record, indent=1).encode()}


def decode(trained: TrainedRun, latents: np.ndarray, scale: int) -> np.ndarray:
    """Images at `scale` times the training resolution."""
    h, w, _ = trained.image_shape
    return trained.decode(latents, size=(scale * h, scale * w))


def interpolate(
    trained: TrainedRun,
    generator: TrainedGenerator,
    pair: tuple[bool, int, int],
    classes: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """Latents [9, i, j, d] between two samples or two test images.

    Raises:
      ValueError: a test image does not exist.
    """
    is_test, *indices = pair
    numbers = np.asarray(indices, np.int32)
    labels = classes[numbers % len(classes)]
    if not is_test:
        noisy = generator.initial_noise(seed=seed, numbers=numbers)
    else:
        split = trained.functaset["test"]
        if max(indices) >= len(split):
            raise UserError(f"test image {max(indices)} does not exist: use 0 to {len(split) - 1}")
        examples = split[numbers]
        if classes[0] != generator.generator.null_class:
            labels = examples["label"]
        noisy = generator.invert(examples["latents"], labels)
    return generator.interpolate(noisy, labels, count=_INTERPOLATION_STEPS)


def select_shown(count: int, classes: int, per_class: int, *, pixels: int) -> np.ndarray:
    """Numbers of the samples on a sheet.

    Args:
      per_class: limit for each class; of a single class, its square.
      pixels: of one sample.
    """
    limit = per_class * classes if classes > 1 else per_class**2
    return np.arange(min(count, limit, max(1, _MAX_PIXELS // pixels)))


def arrange(images: np.ndarray, numbers: np.ndarray, classes: int) -> np.ndarray:
    """One row of images per class, in the order of the numbers, and gray where a class has fewer."""
    if classes == 1 or len(images) < classes:
        return image_io.sheet(images, gap=1)
    columns = -(-len(images) // classes)
    cells = np.full((classes * columns, *images.shape[1:]), 0.5, np.float32)
    cells[numbers % classes * columns + numbers // classes] = images
    return image_io.sheet(cells, gap=1, columns=columns)


def animation(pages: list[np.ndarray]) -> bytes:
    """GIF of pages [h, w, c]; the last one is shown longer."""
    frames = np.stack([image_io.to_uint8(page) for page in pages])
    seconds = [_FRAME_SECONDS] * (len(frames) - 1) + [_LAST_FRAME_SECONDS]
    return image_io.gif(frames, seconds=seconds)
