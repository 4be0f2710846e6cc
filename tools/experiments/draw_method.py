"""Draws the pictures of docs/METHOD.md from a run whose meta_learn stage is complete.

python -m tools.experiments.draw_method RUN [--out=docs/pictures]
"""

import argparse
import pathlib
import sys

import numpy as np

from functa.data import images as images_lib
from functa.evaluation import field_arrays
from functa.fields import coordinates
from functa.fields.fitter import build_fitter
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import image_io

_PIXELS, _CELLS = 32, 4  # pixels and latent cells per side of the example
_TILE = 128  # pixels per side of an enlarged picture
_IMAGES = 16
_GAP = 2  # pixels between pictures


def interpolation_pictures() -> list[np.ndarray]:
    """One channel of a latent grid, and its values at the pixels: nearest, bilinear."""
    grid = np.random.default_rng(3).normal(size=(_CELLS, _CELLS)).astype(np.float32)
    points = coordinates.pixel_centers(_PIXELS)
    index = coordinates.nearest_index(points, _CELLS)
    matrix = coordinates.interpolation_matrix(points, _CELLS)
    nearest = grid[index][:, index]
    # The grid itself is drawn with gaps between the cells.
    side = _PIXELS // _CELLS
    gaps = np.isin(np.arange(_PIXELS) % side, (0, side - 1))
    cells = np.where(gaps[:, None] | gaps, 0, nearest)
    return [cells, nearest, matrix @ grid @ matrix.T]


def coordinate_pictures() -> list[np.ndarray]:
    """Two input features of the field per kind of coordinates, over the columns of pixels."""
    points = coordinates.pixel_centers(_PIXELS)
    pictures = []
    for kind in coordinates.COORDINATES:
        features = coordinates.axis_features(kind, points, cells=_CELLS, pixels=_PIXELS)
        for feature in features.T[[1, 4]] if kind == "binary" else features.T[:2]:
            centered = 2 * (feature - feature.min()) / np.ptp(feature) - 1
            pictures.append(np.broadcast_to(centered, (_PIXELS // 2, _PIXELS)))
    return pictures


def color_grid(panels: list[np.ndarray], columns: int) -> np.ndarray:
    """Signed arrays [h, w] as colors on white, in rows of `columns`."""
    limit = max(float(np.abs(panel).max()) for panel in panels)
    colors = np.stack([image_io.diverging(panel, limit) for panel in panels]) / np.float32(255)
    alpha = colors[..., 3:]
    return image_grid(list(colors[..., :3] * alpha + 1 - alpha), columns)


def image_grid(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images [h, w, c] of one size in rows of `columns`, white between them, enlarged."""
    padding = ((_GAP, _GAP), (_GAP, _GAP), (0, 0))
    padded = [np.pad(image, padding, constant_values=1) for image in images]
    padded += [np.ones_like(padded[0])] * (-len(padded) % columns)
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    factor = min(16, max(1, _TILE // images[0].shape[1]))
    return image_io.enlarge(np.concatenate(rows, 0)[None], factor)[0]


def run_pictures(run: pathlib.Path) -> dict[str, np.ndarray]:
    """Reconstructions, reconstructions after each inner step, and the latents of one image."""
    config = config_lib.load(run)
    _, params = load.load_field(run)
    test = images_lib.open_splits(**config.data)["test"]
    images = test.read(np.arange(_IMAGES))["image"]
    arrays = field_arrays.field_arrays(build_fitter(config), params, images)
    originals, inner_steps = arrays["originals"], arrays["inner_steps"]
    rows = [
        picture
        for original, steps in zip(originals, inner_steps, strict=False)
        for picture in (*steps, original)
    ]
    channels = list(np.moveaxis(arrays["latents"][0], -1, 0))
    name = config.name.split("-")[0]
    reconstructions = [*originals, *arrays["reconstructions"]]
    return {
        f"{name}_reconstructions": image_grid(reconstructions, _IMAGES // 2),
        "inner_steps": image_grid(rows, inner_steps.shape[1] + 1),
        "latents": color_grid(channels, min(8, len(channels))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="directory of the run")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/pictures"))
    args = parser.parse_args()
    try:
        pictures = run_pictures(args.run)
    except ValueError as error:
        parser.error(str(error))
    pictures["interpolation"] = color_grid(interpolation_pictures(), 3)
    pictures["coordinates"] = color_grid(coordinate_pictures(), 2)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = args.out / f"{name}.png"
        path.write_bytes(image_io.png(picture))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
