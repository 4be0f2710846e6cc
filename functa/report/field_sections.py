"""Report sections about the field, computed from the arrays of meta_learn/report.npz."""

from typing import Any, NamedTuple

import numpy as np

from functa.fields.psnr import psnr_of_images
from functa.report import charts
from functa.runtime import image_io

MAX_ERROR = 0.1  # pixel error at which the color scale of an error map ends
MAX_CHANNELS = 64  # of latents on a grid
MAX_LATENTS = 8  # images whose latents are shown
MAX_SIDE = 1024  # pixels of an image in the page

Arrays = dict[str, np.ndarray]


class Picture(NamedTuple):
    """An image [h, w, c] with its caption."""

    pixels: np.ndarray
    caption: str


def sections(arrays: Arrays) -> dict[str, Any]:
    """Template variables for all sections about the field; {} without arrays."""
    if not arrays:
        return {}
    return {
        "reconstructions": [
            {
                "original": original,
                "reconstruction": reconstruction,
                "error": image_io.diverging((reconstruction - original).mean(-1), MAX_ERROR),
                "psnr": psnr_of_images(reconstruction, original),
            }
            for original, reconstruction in zip(
                arrays["originals"], arrays["reconstructions"], strict=True
            )
        ],
        "max_error": MAX_ERROR,
        "psnr": arrays["psnr"],
        "pca_gain": arrays["psnr"] - arrays["pca_psnr"],
        "psnr_charts": psnr_charts(arrays["psnr"], arrays["pca_psnr"]),
        "latents": latent_maps(arrays["latents"][:MAX_LATENTS], arrays["originals"]),
        "resolutions": resolutions(arrays, "decoded"),
        "inner_steps": inner_steps(arrays["inner_steps"], arrays["originals"]),
    }


def psnr_charts(field: np.ndarray, pca: np.ndarray) -> list[str]:
    """Histograms of the PSNR [n] of each test image with the field and with PCA, and of the gain."""

    def chart(title: str, **groups: np.ndarray) -> str:
        labeled = {f"{name}, mean {psnrs.mean():.2f} dB": psnrs for name, psnrs in groups.items()}
        return charts.histogram(labeled, title=title, x_label="dB")

    return [
        chart("PSNR of each image", functa=field, PCA=pca),
        chart("Gain over PCA of each image", gain=field - pca),
    ]


def latent_maps(latents: np.ndarray, originals: np.ndarray) -> dict[str, Any]:
    """Latents [n, i, j, d] as one color map per channel; those of a 1 x 1 grid as rows of squares."""
    _, i, j, d = latents.shape
    vector = i * j == 1
    colors = image_io.diverging(latents, np.abs(latents).max(axis=(0, 1, 2)))  # [n, i, j, d, 4]
    if vector:
        columns = min(d, MAX_CHANNELS)
        rows = np.pad(colors[:, 0, 0], ((0, 0), (0, -d % columns), (0, 0)))
        maps = rows.reshape(len(rows), 1, -1, columns, 4)
    else:
        maps = colors[..., :MAX_CHANNELS, :].transpose(0, 3, 1, 2, 4)
    return {
        "shape": (i, j, d),
        "vector": vector,
        "hidden": not vector and d > MAX_CHANNELS,
        "shown": min(d, MAX_CHANNELS),
        "images": list(zip(originals, maps, strict=False)),
    }


def resolutions(arrays: Arrays, prefix: str) -> list[list[Picture]]:
    """One row per image: the arrays PREFIX_1x, PREFIX_2x, ... [n, h, w, c] by increasing size."""
    names = [name for name in arrays if name.startswith(f"{prefix}_")]
    rows: list[list[Picture]] = []
    for name in sorted(names, key=lambda name: arrays[name].shape[1]):
        scale = name.removeprefix(f"{prefix}_").replace("x", "×")
        for index, image in enumerate(arrays[name]):
            h, w, _ = image.shape
            pixels = image_io.shrink(image, MAX_SIDE)
            caption = f"{scale}: {h} × {w} pixels"
            if len(pixels) < h:
                caption += f", displayed at {pixels.shape[0]} × {pixels.shape[1]}"
            if index == len(rows):
                rows.append([])
            rows[index].append(Picture(pixels, caption))
    return rows


def inner_steps(images: np.ndarray, originals: np.ndarray) -> list[list[Picture]]:
    """One row per image [n, steps + 1, h, w, c]: the image after each inner step, then the original."""
    return [
        [
            *(
                Picture(image, f"step {step}, {psnr_of_images(image, original):.2f} dB")
                for step, image in enumerate(row)
            ),
            Picture(original, "original"),
        ]
        for row, original in zip(images, originals, strict=False)
    ]
