"""Report sections about the generator, computed from the arrays of generate/report.npz."""

from typing import Any

import numpy as np

from functa.diffusion.inpainter import METHODS
from functa.fields.psnr import psnr
from functa.report import charts
from functa.report.field_sections import MAX_SIDE, Arrays, Picture, resolutions
from functa.runtime import image_io


def sections(arrays: Arrays) -> dict[str, Any]:
    """Template variables for all sections about the generator; {} without arrays."""
    if not arrays:
        return {}
    samples = arrays["samples"]  # [classes, n, h, w, c]
    gaussian = arrays["gaussian"]
    pairs = np.concatenate([arrays["compared"], arrays["nearest"]])
    return {
        "samples": [
            _sheet(np.concatenate(samples), samples.shape[1], "samples, one row per class"),
            _sheet(gaussian, len(gaussian), "samples of a Gaussian fitted to the latents"),
        ],
        "sample_shape": samples.shape[1:4],
        "guidance": guidance(arrays),
        "sample_resolutions": resolutions(arrays, "samples"),
        "inpainting": inpainting(arrays),
        "nearest": _sheet(
            pairs, len(pairs) // 2, "samples, and below each its nearest training image"
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

    def chart(title: str, values: np.ndarray) -> str:
        points = zip(scales, values, strict=True)
        label = "; ".join(f"{scale:g}: {value:.4g}" for scale, value in points)
        series = charts.Series(label, scales, values.tolist())
        return charts.line_chart([series], title=title, x_label="guidance scale")

    return {
        "standard_error": np.nanmean(arrays["guidance_sweep_standard_error"]),
        "charts": [
            chart("Label agreement, %", 100 * arrays["guidance_sweep_label_agreement"]),
            chart("Kernel distance to test images", arrays["guidance_sweep_kernel_distance"]),
        ],
    }


def inpainting(arrays: Arrays) -> list[list[Picture]]:
    """One row per test image: the original, its observed part, and the result of each method."""
    if "inpainting_original" not in arrays:
        return []
    captions = {"original": "original", "observed": "observed"} | METHODS
    rows = []
    for index in range(len(arrays["inpainting_original"])):
        row = []
        for name, caption in captions.items():
            if name in METHODS:
                caption += f", {psnr(arrays[f'inpainting_mse_{name}'][index]):.1f} dB"
            row.append(Picture(arrays[f"inpainting_{name}"][index], caption))
        rows.append(row)
    return rows
