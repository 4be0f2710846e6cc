"""Report sections about the generator, computed from the arrays of generate/report.npz."""

from typing import Any

import numpy as np

from functa.diffusion.inpainting import METHODS
from functa.fields.psnr import psnr
from functa.report import charts
from functa.report.field_sections import MAX_SIDE, Arrays, Picture, resolutions
from functa.runtime import image_io


def sections(arrays: Arrays) -> dict[str, Any]:
    """Template variables for all sections about the generator; {} without arrays."""
    if not arrays:
        return {}
    samples = arrays["samples"]  # [classes, n, h, w, c]
    rows = samples.reshape(-1, *samples.shape[2:])
    pairs = np.concatenate([arrays["compared"], arrays["nearest"]])
    return {
        "samples": [
            _sheet(rows, samples.shape[1], "samples, one row per class"),
            _sheet(
                arrays["gaussian"],
                len(arrays["gaussian"]),
                "samples of a Gaussian fitted to the latents",
            ),
        ],
        "sample_shape": samples.shape[1:4],
        "guidance": guidance(arrays),
        "sample_resolutions": resolutions(arrays, "samples"),
        "inpainting": inpainting(arrays),
        "nearest": _sheet(
            pairs, len(arrays["nearest"]), "samples, and below each its nearest training image"
        ),
    }


def _sheet(images: np.ndarray, columns: int, caption: str) -> Picture:
    sheet = image_io.sheet(images, gap=0, columns=columns)
    return Picture(image_io.shrink(sheet, MAX_SIDE), caption)


def guidance(arrays: Arrays) -> dict[str, Any] | None:
    """Label agreement and kernel distance over the guidance scales."""
    if "guidance_sweep_scale" not in arrays:
        return None
    scales = arrays["guidance_sweep_scale"].tolist()
    curves = {
        "Label agreement, %": 100 * arrays["guidance_sweep_label_agreement"],
        "Kernel distance to test images": arrays["guidance_sweep_kernel_distance"],
    }
    return {
        "standard_error": np.nanmean(arrays["guidance_sweep_standard_error"]),
        "charts": [
            charts.line_chart(
                [charts.Series(_values(scales, values), scales, values.tolist())],
                title=title,
                x_label="guidance scale",
            )
            for title, values in curves.items()
        ],
    }


def _values(scales: list[float], values: np.ndarray) -> str:
    pairs = zip(scales, values, strict=True)
    return "; ".join(f"{scale:g}: {value:.4g}" for scale, value in pairs)


def inpainting(arrays: Arrays) -> list[list[Picture]]:
    """One row per test image: the original, its observed part, and the result of each method."""
    if "inpainting_original" not in arrays:
        return []
    captions = {"original": "original", "observed": "observed"} | METHODS
    return [
        [
            Picture(
                arrays[f"inpainting_{name}"][index],
                f"{caption}, {psnr(arrays[f'inpainting_mse_{name}'][index]):.1f} dB"
                if name in METHODS
                else caption,
            )
            for name, caption in captions.items()
        ]
        for index in range(len(arrays["inpainting_original"]))
    ]
