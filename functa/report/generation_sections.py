"""The sections of the report that show what was generated: from arrays of generate/report.npz to HTML."""

import numpy as np

from functa.diffusion.inpainter import METHODS
from functa.fields import psnr
from functa.report import charts, field_sections, html
from functa.report.html import Section
from functa.runtime import image_io

Arrays = dict[str, np.ndarray]


def sections(arrays: Arrays) -> list[Section]:
    """Those whose arrays are there; `functa.report.write_report` says what the arrays are."""
    makers = (samples, sweep, ladder, imputed, neighbours)
    return [section for maker in makers if (section := maker(arrays))]


def samples(arrays: Arrays) -> Section | None:
    """A row of samples a class, and what a Gaussian makes."""
    if "samples" not in arrays:
        return None
    _, count, h, w, _ = arrays["samples"].shape
    rows = [*arrays["samples"]]
    body = html.figure(_sheet(rows, "samples, a row a class"), "samples, a row a class")
    if "gaussian" in arrays:
        caption = "samples of a Gaussian fitted to the latents"
        body += html.figure(_sheet([arrays["gaussian"]], caption), caption)
    lead = f"Latents drawn by the generator, decoded by the field to {h} × {w} pixels, {count} of each class."
    return Section("samples", "Generated", lead, f'<div class="row">{body}</div>')


def sweep(arrays: Arrays) -> Section | None:
    """Labels and distance over the scale of guidance."""
    if "guidance_sweep_scale" not in arrays:
        return None
    scale = arrays["guidance_sweep_scale"].tolist()
    body = ""
    for title, values in (
        ("seen as the class asked for, %", 100 * arrays["guidance_sweep_label_agreement"]),
        ("kernel distance from test images", arrays["guidance_sweep_kernel_distance"]),
    ):
        chart = charts.line_chart(
            [charts.Series("", scale, values.tolist())],
            x_label="scale of guidance",
            description=f"{title}, by the scale of guidance",
        )
        told = "; ".join(f"{a:g}: {b:.4g}" for a, b in zip(scale, values, strict=True))
        body += html.chart(title, html.legend([told]), chart)
    errors = arrays["guidance_sweep_standard_error"]
    lead = (
        "What exaggerating the class does to the same samples: they are easier to recognise and less various. "
        f"1 is no guidance. The standard error of the distances is about {np.nanmean(errors):.1g}."
    )
    return Section("guidance", "Guidance", lead, f'<div class="charts">{body}</div>')


def ladder(arrays: Arrays) -> Section | None:
    """Samples at several resolutions."""
    body = field_sections.resolutions(arrays, "samples")
    lead = "Samples have no resolution either: the same latents, at the resolution of training and above it."
    return Section("ladder", "Samples at any resolution", lead, body) if body else None


def imputed(arrays: Arrays) -> Section | None:
    """What is seen of test images, and what is made of it."""
    if "inpainting_original" not in arrays:
        return None
    images, body = arrays["inpainting_original"], ""
    columns = {"original": "original", "observed": "what is seen"} | METHODS
    for index in range(len(images)):
        row = ""
        for name, caption in columns.items():
            if name in METHODS:
                error = arrays[f"inpainting_mse_{name}"][index]
                caption += f", {float(psnr.psnr(error)):.1f} dB"
            picture = np.clip(arrays[f"inpainting_{name}"][index], 0, 1)
            row += html.figure(html.image(picture, alt=f"{caption}, image {index + 1}"), caption)
        body += f'<div class="row film">{row}</div>'
    lead = (
        "Test images of which the right half is seen. Latents fitted to it know nothing of the left; with the "
        "generator as prior they are drawn from what could be there. The mean of draws is best in PSNR, which is of "
        "the hidden half; a draw looks like an image."
    )
    return Section("imputation", "The other half", lead, body)


def neighbours(arrays: Arrays) -> Section | None:
    """Samples above the training images nearest to them."""
    if not {"compared", "nearest"} <= arrays.keys():
        return None
    caption = "samples, and below each the nearest training image"
    body = html.figure(_sheet([arrays["compared"], arrays["nearest"]], caption), caption)
    lead = "Were they the same, the generator would have learned its training set by heart."
    return Section("neighbours", "Nearest training images", lead, f'<div class="row">{body}</div>')


def _sheet(rows: list[np.ndarray], alt: str) -> str:
    """Images [n, h, w, c] in [0, 1], a row for each of `rows`, as one picture."""
    lines = [np.concatenate([*images], axis=1) for images in rows]
    picture = np.clip(np.concatenate(lines, axis=0), 0, 1)
    return html.image(image_io.shrink(picture, 1024), alt=alt)
