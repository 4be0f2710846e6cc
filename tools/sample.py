#!/usr/bin/env python3
"""Draws new images by the generator of a run, at any resolution.

    tools/sample.py runs/digits --out=samples
    tools/sample.py runs/digits --count=64 --classes=3,8 --guidance=2 --steps=32 --scale=4 --out=samples
    tools/sample.py runs/digits --classes=none --functaset --film --out=samples
    tools/sample.py runs/digits --interpolate=0,13 --out=strip          # between samples 0 and 13
    tools/sample.py runs/digits --interpolate=test:5,test:9 --out=strip # between two test images

Sample n is of class n modulo the number of classes asked for, and a function of seed, n and the settings alone: a
larger --count adds samples and changes none. Sheets have a row a class; with one class, or none, or fewer samples
than classes, they are square. At most 32 samples a class are shown, 1,024 of one, and on a sheet or a film as many
as make 100 million pixels.

    samples_4x.png              a sheet at four times the training resolution
    interpolation_4x.png        nine steps between two images
    film.gif                    what is expected behind the noise, step after step, of ten samples a class, at the
                                largest of the scales at which an image has no more than 512 pixels to a side
    functaset/                  the samples, all in the split train, their psnr 0: they were fitted to nothing
    samples.json                settings, and the class of every sample

Exit status: 0; 2 for bad arguments, or a run without a generator.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.diffusion import sample, sharded_sampling
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import image_io
from functa.runtime.config import range_errors
from functa.training.tasks import generation

_SHOWN_OF_A_CLASS = 32
_FILMED_OF_A_CLASS = 10
_MOST_PIXELS = 10**8  # of a sheet or a film
_FILMED_SIDE = 512  # pixels of an image
_STRIP = 9  # images
_FRAME_SECONDS, _LAST_SECONDS = 0.1, 1.5
_SOLVERS = ("euler", "heun", "dpmpp_2m")  # that need no settings of their own


def parse_classes(text: str) -> str | list[int]:
    """`0,3` -> [0, 3]; all and none as they are."""
    if text in ("all", "none"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: classes look like 0,3, all or none")
    return list(dict.fromkeys(map(int, text.split(","))))


def parse_scales(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: scales look like 1,2,4")
    return list(dict.fromkeys(map(int, text.split(","))))


def parse_pair(text: str) -> tuple[bool, int, int]:
    """`3,17` -> (False, 3, 17), samples; `test:3,test:17` -> (True, 3, 17), images of the test split."""
    match = re.fullmatch(r"(test:)?(\d+),(test:)?(\d+)", text)
    if not match or match[1] != match[3]:
        raise argparse.ArgumentTypeError(f"{text!r}: a pair looks like 3,17 or test:3,test:17")
    return bool(match[1]), int(match[2]), int(match[4])


def settle(config: ConfigDict, args: argparse.Namespace) -> tuple[ConfigDict, np.ndarray]:
    """(the config with what the arguments change, the classes that are drawn in turn).

    Raises:
      ValueError: all that is impossible.
    """
    config = config_lib.from_dict(config_lib.to_dict(config))
    settings, count = config.generate, config.data.num_classes
    if args.seed is not None:
        config.seed = args.seed
    if args.steps is not None:
        settings.schedule.steps = args.steps
    if args.solver is not None:
        settings.solver = ConfigDict({"name": args.solver})
    problems = []
    if args.guidance is not None:
        settings.guidance.scale = args.guidance
        if args.guidance != 1 and args.classes == "none":
            problems.append("--guidance exaggerates a class, and --classes=none asks for no class")
    if settings.label_dropout == 0 and args.classes == "none":
        problems.append(
            "--classes=none wants a model that knows images of any class; this one was trained with "
            "generate.label_dropout=0"
        )
    if args.classes == "none":
        # The null class is as good guided as not, at half the price.
        settings.guidance.scale, classes = 1.0, [count]
    else:
        classes = list(range(count)) if args.classes == "all" else args.classes
        wrong = [label for label in classes if label >= count]
        if wrong:
            told = ", ".join(map(str, wrong))
            problems.append(f"--classes={told}: the classes of this run are 0 to {count - 1}")
    pair = args.interpolate[1:] if args.interpolate else (0,)
    problems += range_errors({"--count": (args.count, 1, 10**6)})
    problems += range_errors({"--interpolate": (max(pair), 0, 2**31 - 1)})
    problems += range_errors({"--seed": (config.seed, 0, 2**32 - 1)})
    problems += generation.check(config)
    if problems:
        raise ValueError("\n".join(problems))
    return config, np.asarray(classes, np.int32)


def sheet(images: np.ndarray, numbers: np.ndarray, classes: int) -> np.ndarray:
    """A row a class, in the order of the numbers; grey where a class has one image less."""
    if classes == 1 or len(images) < classes:
        return image_io.sheet(images, gap=1)
    columns = -(-len(images) // classes)
    cells = np.full((classes * columns, *images.shape[1:]), 0.5, np.float32)
    cells[numbers % classes * columns + numbers // classes] = images
    return image_io.sheet(cells, gap=1, columns=columns)


def shown(count: int, classes: int, of_a_class: int, *, pixels: int) -> np.ndarray:
    """The numbers of the samples on a sheet, of so many pixels each."""
    most = of_a_class * classes if classes > 1 else of_a_class**2
    return np.arange(min(count, most, max(1, _MOST_PIXELS // pixels)))


def strip(
    generator: load.Generator,
    config: ConfigDict,
    pair: tuple[bool, int, int],
    classes: np.ndarray,
) -> np.ndarray:
    """Latents [9, i, j, d] between two samples or two test images.

    Raises:
      ValueError: a test image that is not there.
    """
    of_test, *indices = pair
    numbers = np.asarray(indices, np.int32)
    labels = classes[numbers % len(classes)]
    if not of_test:
        return sample.strip_of_samples(
            generator, config, numbers=numbers, labels=labels, count=_STRIP
        )
    latents, known = sample.encoded_pair(generator, (indices[0], indices[1]))
    if classes[0] < config.data.num_classes:
        labels = known
    return sample.strip_of_latents(generator, config, latents=latents, labels=labels, count=_STRIP)


def film(
    trajectory: np.ndarray,
    numbers: np.ndarray,
    classes: int,
    decode: Callable[[np.ndarray], np.ndarray],
) -> bytes:
    """A sheet a step; the last one stays."""
    frames = np.stack(
        [image_io.to_uint8(sheet(decode(latents), numbers, classes)) for latents in trajectory]
    )
    return image_io.gif(frames, seconds=[_FRAME_SECONDS] * (len(frames) - 1) + [_LAST_SECONDS])


def run(args: argparse.Namespace) -> list[epath.Path]:
    """Writes the files; returns their paths.

    Raises:
      ValueError: see the module.
    """
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is there and not an empty folder: name another one")
    generator = load.load_generator(args.run)
    config, classes = settle(generator.config, args)
    h, w, _ = generator.field.image_shape
    most = math.isqrt(_MOST_PIXELS // (h * w))
    if max(args.scale) > most:
        raise ValueError(
            f"--scale={max(args.scale)}: an image of {h}x{w} may have {_MOST_PIXELS:,} pixels, at {most} times its "
            "resolution"
        )
    decoders = {
        scale: sharded_sampling.make_decoder(
            generator.field,
            generator.field_params,
            batch_size=max(1, config.generate.sample_batch_size // scale**2),
            scale=scale,
        )
        for scale in args.scale
    }
    files: dict[str, bytes] = {}
    if args.interpolate:
        latents = strip(generator, config, args.interpolate, classes)
        for scale, decode in decoders.items():
            page = image_io.sheet(decode(latents), gap=1, columns=_STRIP)
            files[f"interpolation_{scale}x.png"] = image_io.png(page)
        return _write(out, files)
    numbers = np.arange(args.count, dtype=np.int32)
    labels = classes[numbers % len(classes)]
    latents = sample.draw(generator, config, numbers=numbers, labels=labels)
    for scale, decode in decoders.items():
        pixels = scale**2 * h * w
        some = shown(args.count, len(classes), _SHOWN_OF_A_CLASS, pixels=pixels)
        page = sheet(decode(latents[some]), some, len(classes))
        files[f"samples_{scale}x.png"] = image_io.png(page)
    if args.film:
        scale = max(
            [scale for scale in decoders if scale * max(h, w) <= _FILMED_SIDE] or [min(decoders)]
        )
        pixels = config.generate.schedule.steps * scale**2 * h * w
        few = shown(args.count, len(classes), _FILMED_OF_A_CLASS, pixels=pixels)
        steps = sample.trajectory(generator, config, numbers=few, labels=labels[few])
        files["film.gif"] = film(steps, few, len(classes), decoders[scale])
    told = _told(generator, config)
    # A functaset says -1 where there is no class.
    stored = np.where(labels < config.data.num_classes, labels, -1)
    if args.functaset:
        sample.write_functaset(
            out / "functaset", generator, latents=latents, labels=stored, told=told
        )
    written = _write(out, files)
    config_lib.write_json(out / "samples.json", told | {"labels": stored.tolist()})
    return [*written, out / "samples.json"]


def _told(generator: load.Generator, config: ConfigDict) -> dict[str, Any]:
    keys = ("schedule", "solver", "guidance")
    settings = {key: config_lib.to_dict(config.generate)[key] for key in keys}
    digest = generator.functaset.manifest.digest
    return {"run": config.name, "functaset_digest": digest, "seed": config.seed, **settings}


def _write(out: epath.Path, files: dict[str, bytes]) -> list[epath.Path]:
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return [out / name for name in files]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run whose stage generate is complete")
    parser.add_argument("--count", type=int, default=100, help="samples (default: %(default)s)")
    parser.add_argument(
        "--classes", type=parse_classes, default="all", metavar="0,3|all|none", help="none: of any"
    )
    parser.add_argument("--guidance", type=float, metavar="S", help="default: the run's")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the run's")
    parser.add_argument("--solver", choices=_SOLVERS, help="default: the run's")
    parser.add_argument("--seed", type=int, help="default: the run's")
    parser.add_argument("--scale", type=parse_scales, default=[1, 2, 4], metavar="1,2,4")
    parser.add_argument("--functaset", action="store_true", help="write the latents too")
    parser.add_argument("--film", action="store_true", help="write film.gif too")
    parser.add_argument(
        "--interpolate", type=parse_pair, metavar="A,B", help="a strip and nothing else"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty")
    args = parser.parse_args(argv)
    if args.interpolate and (args.film or args.functaset):
        parser.error("--interpolate writes a strip, without --film and --functaset")
    try:
        files = run(args)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        parser.error(str(error))
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
