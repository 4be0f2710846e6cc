#!/usr/bin/env python3
"""Reconstructs test images of a run from part of their pixels, with its generator as prior and without.

    tools/impute.py runs/digits --task=half --out=half
    tools/impute.py runs/digits --task=random10 --images=360 --draws=16 --out=tenth

Tasks: half (the left half is hidden), random10 (all but a tenth of the pixels is), lowres4 (means of blocks of 4x4
pixels are seen), noisy (all pixels, with noise of standard deviation 0.2).

Without prior, latents are fitted by the inner loop of the run to what is seen. What no seen pixel depends on stays as
zero latents show it, so the mean training image stands beside it, which knows nothing of the image. With prior,
several draws are taken from the latents that could have been seen so; their mean is what is best in PSNR, one of them
what looks like an image. Pixels that were seen as they are stay as they are, and PSNR (dB, data range 1, mean and
standard error over images) is of the others: for lowres4 and noisy of all.

    imputation.png      rows: the image, what is seen, without prior, the mean image, a draw, the mean of draws
    imputation.json     the table, and the settings

Exit status: 0; 2 for bad arguments, a run without a generator, or data that are not there.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from functa import config as config_lib
from functa import imputation, metrics, pictures, rng, samplers, trained
from functa.data import images as images_lib
from functa.data.functaset_format import float32_latents
from functa.tasks import generation

_SHOWN = 16  # images
_SIDE = 32  # pixels; smaller images are enlarged to about this side
_CHAINS = 256  # draws at a time, about
_AVERAGED = 10_000  # training images
_MEASURED = 512  # examples that the denoiser's error is measured on
_SCHEDULE: dict[str, Any] = {"name": "karras", "sigma_min": 0.02, "sigma_max": 20.0, "rho": 7.0}
METHODS = {
    "without": "without prior",
    "average": "mean training image",
    "draw": "one draw with prior",
    "mean": "mean of draws with prior",
}


class Imputer:
    """What does not depend on the images: one program for all batches of a size.

    average: the mean training image [h, w, c].
    """

    def __init__(
        self,
        generator: trained.Generator,
        kind: imputation.Kind,
        *,
        average: np.ndarray,
        steps: int,
        seed: int,
    ):
        self._generator, self._kind, self._seed = generator, kind, seed
        self._average = average
        self._key = rng.stream_key(seed, "sample")
        self._sigmas = samplers.make_schedule(**_SCHEDULE, steps=steps)
        config = generator.config
        self._denoise = generation.make_denoise(config, jax.tree.map(jnp.asarray, generator.params))
        self._null = config.data.num_classes
        split = "validation" if generator.functaset.num_examples("validation") else "train"
        self._variances = self._measure(split)
        # What the field cannot show, and what noise hides.
        field_psnr = generator.functaset.manifest.splits[split]["psnr_of_mean_mse"]
        self._data_std = float(np.sqrt(10 ** (-field_psnr / 10) + kind.noise**2))
        self._without = jax.jit(self._fit)
        self._with = jax.jit(self._draw)

    def _measure(self, split: str) -> jax.Array:
        source = self._generator.functaset.source(split, cache="none")
        count = min(_MEASURED, source.num_examples)
        latents = float32_latents(source.read(np.arange(count) * source.num_examples // count))
        normalized = self._generator.normalization.normalize(jnp.asarray(latents))
        labels = jnp.full(count, self._null, jnp.int32)
        measure = jax.jit(
            lambda latents: imputation.spread(
                self._denoise, latents, labels, self._sigmas, rng.stream_key(self._seed, "noise")
            )
        )
        return measure(normalized)

    def _fit(self, observation: imputation.Observation) -> jax.Array:
        generator = self._generator
        latents = imputation.fit(
            generator.field,
            generator.field_params,
            observation,
            pool=self._kind.pool,
            steps=generator.config.inner_loop.steps,
        )
        return generator.field(generator.field_params["field"], latents)

    def _draw(self, observation: imputation.Observation, numbers: jax.Array) -> jax.Array:
        generator = self._generator

        def decode(normalized):
            latents = generator.normalization.restore(normalized)
            return generator.field(generator.field_params["field"], latents)

        drawn = imputation.impute(
            self._denoise,
            lambda latents: imputation.view(decode(latents), observation.mask, self._kind.pool),
            observation.data,
            self._sigmas,
            self._key,
            data_std=self._data_std,
            variances=self._variances,
            numbers=numbers,
            labels=jnp.full(len(numbers), self._null, jnp.int32),
            latent_shape=tuple(generator.config.field.latent_shape),
        )
        return decode(drawn)

    def __call__(self, images: np.ndarray, rows: np.ndarray, draws: int) -> dict[str, np.ndarray]:
        """Images [b, h, w, c] float32 of the test split's `rows` [b] -> {"seen" and METHODS: images}."""
        seeds = [rng.stream_seed(self._seed, "noise", int(row)) for row in rows]
        observation = imputation.observe(self._kind, images, seeds)
        numbers = (rows[:, None] * draws + np.arange(draws)).reshape(-1).astype(np.int32)
        chains = jax.tree.map(lambda leaf: jnp.repeat(leaf, draws, axis=0), observation)
        drawn = np.clip(np.asarray(self._with(chains, numbers)), 0, 1)
        drawn = drawn.reshape(len(rows), draws, *images.shape[1:])
        made = {
            "without": np.asarray(self._without(observation)),
            "average": np.broadcast_to(self._average, images.shape),
            "draw": drawn[:, 0],
            "mean": drawn.mean(axis=1),
        }
        filled = {name: imputation.fill_in(self._kind, observation, made[name]) for name in METHODS}
        mse = {
            f"mse_{name}": imputation.hidden_mse(self._kind, observation, filled[name], images)
            for name in METHODS
        }
        return filled | mse | {"seen": np.asarray(observation.data)}


def impute_all(
    imputer: Imputer, images: np.ndarray, rows: np.ndarray, draws: int
) -> dict[str, np.ndarray]:
    """Imputer, in batches of one size."""
    size = min(len(rows), max(1, _CHAINS // draws))
    parts = []
    for start in range(0, len(rows), size):
        some = np.minimum(np.arange(start, start + size), len(rows) - 1)
        part = imputer(images[some], rows[some], draws)
        parts.append({name: values[: len(rows) - start] for name, values in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def table(result: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """{method: psnr, standard_error, gain: over without, gain_standard_error, psnr_of_mean_mse}."""
    psnr = {name: metrics.psnr(result[f"mse_{name}"]) for name in METHODS}
    rows = {}
    for name, values in psnr.items():
        gain = values - psnr["without"]
        rows[name] = {
            "psnr": float(values.mean()),
            "standard_error": _standard_error(values),
            "gain": float(gain.mean()),
            "gain_standard_error": _standard_error(gain),
            "psnr_of_mean_mse": float(metrics.psnr(result[f"mse_{name}"].mean(dtype=np.float64))),
        }
    return rows


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def strips(images: np.ndarray, result: dict[str, np.ndarray]) -> bytes:
    columns = [images, result["seen"], *(result[name] for name in METHODS)]
    cells = np.stack([column[:_SHOWN] for column in columns], axis=1).clip(0, 1)
    cells = cells.reshape(-1, *images.shape[1:])
    factor = max(1, _SIDE // max(images.shape[1:3]))
    page = pictures.sheet(pictures.enlarge(cells, factor), gap=2, columns=len(columns))
    return pictures.png(page)


def run(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Writes the files; returns the table.

    Raises:
      ValueError: see the module.
    """
    problems = [
        f"--{name}={value} must be at least {least}"
        for name, value, least in (
            ("images", args.images, 2),
            ("draws", args.draws, 1),
            ("steps", args.steps, 1),
        )
        if value < least
    ]
    out = epath.Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out={out} is there and not an empty folder: name another one")
    if problems:
        raise ValueError("\n".join(problems))
    generator = trained.load_generator(args.run)
    config = generator.config
    if config.generate.label_dropout == 0:
        raise ValueError(
            "the class of an image that is seen in part is not known, and this generator wants one: it was "
            "trained with generate.label_dropout=0"
        )
    data: dict[str, Any] = dict(config.data)
    if args.data_dir is not None:
        data["data_dir"] = args.data_dir
    splits = images_lib.open_splits(**data)
    test, train = splits["test"], splits["train"]
    if args.images > test.num_examples:
        raise ValueError(f"--images={args.images}: there are {test.num_examples} test images")
    rows = np.linspace(0, test.num_examples - 1, args.images).astype(np.int64)
    images = test.read(rows)["image"].astype(np.float32) / np.float32(255)
    some = train.read(np.arange(min(train.num_examples, _AVERAGED)))["image"]
    imputer = Imputer(
        generator,
        imputation.KINDS[args.task],
        average=(some.mean(axis=0) / 255).astype(np.float32),
        steps=args.steps,
        seed=args.seed,
    )
    result = impute_all(imputer, images, rows, args.draws)
    rows_of_table = table(result)
    out.mkdir(parents=True, exist_ok=True)
    (out / "imputation.png").write_bytes(strips(images, result))
    settings = {name: getattr(args, name) for name in ("task", "images", "draws", "steps", "seed")}
    digest = generator.functaset.manifest.digest
    told = settings | {"functaset_digest": digest, "methods": rows_of_table}
    config_lib.write_json(out / "imputation.json", told)
    return rows_of_table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="directory of a run whose stage generate is complete")
    parser.add_argument("--task", required=True, choices=tuple(imputation.KINDS))
    parser.add_argument(
        "--images", type=int, default=64, help="evenly spread over the test split (%(default)s)"
    )
    parser.add_argument("--draws", type=int, default=8, help="of each image (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="noise levels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pixels, noise and draws")
    parser.add_argument("--data_dir", metavar="DIR", help="where the images lie now")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty")
    args = parser.parse_args(argv)
    try:
        rows = run(args)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    print(f"{args.task}, {args.images} test images; dB on hidden pixels, mean and standard error")
    for name, row in rows.items():
        print(
            f"{METHODS[name]:26}{row['psnr']:7.2f} +-{row['standard_error']:5.2f}"
            f"   gain{row['gain']:7.2f} +-{row['gain_standard_error']:5.2f}"
        )
    print(epath.Path(args.out) / "imputation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
