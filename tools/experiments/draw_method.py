#!/usr/bin/env python3
"""Draws the pictures of docs/METHOD.md from a finished run: tools/draw_method.py RUN [--out=docs/pictures]."""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from functa.data import images as images_lib
from functa.evaluation import field_arrays
from functa.fields import coordinates
from functa.fields.fitter import build_fitter
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import image_io

_PIXELS, _CELLS = 32, 4
_TILE = 128  # pixels a picture is enlarged to
_SHOWN = 16


def lookup_pictures() -> list[np.ndarray]:
    """One channel of a 4x4 latent grid, and what 32x32 pixels find there: nearest, bilinear."""
    grid = np.random.default_rng(3).normal(size=(_CELLS, _CELLS)).astype(np.float32)
    points = coordinates.pixel_centers(_PIXELS)
    index = coordinates.nearest_index(points, _CELLS)
    matrix = coordinates.interpolation_matrix(points, _CELLS)
    blocks = np.kron(grid, np.ones((_PIXELS // _CELLS, _PIXELS // _CELLS), np.float32))
    # The grid itself, with gaps so that it reads as sixteen numbers and not as an image.
    edge = np.arange(_PIXELS) % (_PIXELS // _CELLS)
    blocks[(edge == 0) | (edge == 7)] = 0
    blocks[:, (edge == 0) | (edge == 7)] = 0
    return [blocks, grid[index][:, index], matrix @ grid @ matrix.T]


def coords_pictures() -> list[np.ndarray]:
    """What the field sees at 32x32 pixels of a 4x4 grid: one picture a feature of the column."""
    points = coordinates.pixel_centers(_PIXELS)
    rows = []
    for kind in coordinates.COORDINATES:
        features = coordinates.axis_features(kind, points, cells=_CELLS, pixels=_PIXELS)
        for feature in features.T[:2] if kind != "binary" else features.T[[1, 4]]:
            centred = 2 * (feature - feature.min()) / np.ptp(feature) - 1
            rows.append(np.broadcast_to(centred[None], (_PIXELS // 2, _PIXELS)))
    return rows


def strip(panels: list[np.ndarray], columns: int) -> np.ndarray:
    """Signed panels in rows of `columns`, as colours on white."""
    limit = max(float(np.abs(panel).max()) for panel in panels)
    colours = np.stack([image_io.diverging(panel, limit) for panel in panels]) / np.float32(255)
    alpha = colours[..., 3:]
    return beside(list(colours[..., :3] * alpha + 1 - alpha), columns)


def beside(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images [h, w, c] of one size in rows, white between them, enlarged."""
    gap = 2
    padded = [
        np.pad(image, ((gap, gap), (gap, gap), (0, 0)), constant_values=1) for image in images
    ]
    while len(padded) % columns:
        padded.append(np.ones_like(padded[0]))
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    factor = min(16, max(1, _TILE // images[0].shape[1]))
    return image_io.enlarge(np.concatenate(rows, 0)[None], factor)[0]


def run_pictures(run: pathlib.Path) -> dict[str, np.ndarray]:
    """The image growing over the inner steps, and the latents of one image, from a finished run."""
    config = config_lib.load(run)
    _, params = load.load_field(run)
    test = images_lib.open_splits(**config.data)["test"]
    images = test.read(np.arange(_SHOWN))["image"]
    arrays = field_arrays.field_arrays(build_fitter(config), params, images)
    images, frames = arrays["originals"], arrays["inner_steps"]
    rows = [frame for image, row in zip(images, frames, strict=False) for frame in (*row, image)]
    channels = list(np.moveaxis(arrays["latents"][0], -1, 0))
    name = config.name.split("-")[0]
    return {
        f"{name}_reconstructions": beside([*images, *arrays["reconstructions"]], _SHOWN // 2),
        "inner_steps": beside(rows, frames.shape[1] + 1),
        "latents": strip(channels, min(8, len(channels))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", type=pathlib.Path, help="directory of a run whose stage meta_learn is complete"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/pictures"))
    args = parser.parse_args()
    try:
        drawn = run_pictures(args.run)
    except ValueError as error:
        parser.error(str(error))
    drawn |= {
        "interpolation": strip(lookup_pictures(), 3),
        "coordinates": strip(coords_pictures(), 2),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, image in drawn.items():
        path = args.out / f"{name}.png"
        path.write_bytes(image_io.png(image))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
