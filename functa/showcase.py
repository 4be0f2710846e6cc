"""The sections of the report that show what was generated: from arrays of generate/report.npz to HTML."""

import numpy as np

from functa import page, pictures
from functa.page import Section

Arrays = dict[str, np.ndarray]


def sections(arrays: Arrays) -> list[Section]:
    """Those whose arrays are there; `functa.report.write_report` says what the arrays are."""
    makers = (samples, neighbours)
    return [section for maker in makers if (section := maker(arrays))]


def samples(arrays: Arrays) -> Section | None:
    """A row of samples a class, and what a Gaussian makes."""
    if "samples" not in arrays:
        return None
    _, count, h, w, _ = arrays["samples"].shape
    rows = [*arrays["samples"]]
    body = page.figure(_sheet(rows, "samples, a row a class"), "samples, a row a class")
    if "gaussian" in arrays:
        caption = "samples of a Gaussian fitted to the latents"
        body += page.figure(_sheet([arrays["gaussian"]], caption), caption)
    lead = f"Latents drawn by the generator, decoded by the field to {h} × {w} pixels, {count} of each class."
    return Section("samples", "Generated", lead, f'<div class="row">{body}</div>')


def neighbours(arrays: Arrays) -> Section | None:
    """Samples above the training images nearest to them."""
    if not {"compared", "nearest"} <= arrays.keys():
        return None
    caption = "samples, and below each the nearest training image"
    body = page.figure(_sheet([arrays["compared"], arrays["nearest"]], caption), caption)
    lead = "Were they the same, the generator would have learned its training set by heart."
    return Section("neighbours", "Nearest training images", lead, f'<div class="row">{body}</div>')


def _sheet(rows: list[np.ndarray], alt: str) -> str:
    """Images [n, h, w, c] in [0, 1], a row for each of `rows`, as one picture."""
    lines = [np.concatenate([*images], axis=1) for images in rows]
    picture = np.clip(np.concatenate(lines, axis=0), 0, 1)
    return page.image(pictures.shrink(picture, 1024), alt=alt)
