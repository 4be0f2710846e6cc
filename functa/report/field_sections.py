"""The sections of the report that show images: from arrays of meta_learn/report.npz to HTML."""

import numpy as np

from functa.fields import psnr as metrics
from functa.report import charts, html
from functa.report.html import Section
from functa.runtime import image_io

FULL_ERROR = 0.1  # error of a pixel value that is drawn in full colour
MOST_CHANNELS = 64  # drawn of latents on a grid
MOST_EXAMPLES = 8  # whose latents are drawn
MOST_PIXELS = 1024  # side of the largest picture put on the page

Arrays = dict[str, np.ndarray]


def sections(arrays: Arrays) -> list[Section]:
    """Those whose arrays are there; `functa.report.write_report` says what the arrays are."""
    makers = (reconstructions, distribution, latents, scales, inner_steps)
    return [section for maker in makers if (section := maker(arrays))]


def reconstructions(arrays: Arrays) -> Section | None:
    """Originals, reconstructions and errors."""
    if not {"originals", "reconstructions"} <= arrays.keys():
        return None
    body = ""
    pairs = zip(arrays["originals"], arrays["reconstructions"], strict=True)
    for index, (original, fitted) in enumerate(pairs, 1):
        error = image_io.diverging((fitted - original).mean(-1), FULL_ERROR)
        trio = (
            html.image(original, alt=f"original {index}")
            + html.image(fitted, alt=f"reconstruction {index}")
            + html.image(error, alt=f"error of reconstruction {index}", kind="pixels framed")
        )
        body += html.figure(f'<div class="trio">{trio}</div>', _decibels(original, fitted))
    lead = (
        "Test images, what the field makes of their latents, and the difference: red too bright, "
        f"blue too dark, full colour where it is {FULL_ERROR:.0%} of the range."
    )
    return Section("reconstructions", "Reconstructions", lead, f'<div class="pairs">{body}</div>')


def _decibels(original: np.ndarray, fitted: np.ndarray) -> str:
    error = np.mean(np.square(fitted.astype(np.float64) - original))
    return f"{metrics.psnr(error):.2f} dB"


def distribution(arrays: Arrays) -> Section | None:
    """Histograms of the PSNR of every test image: beside PCA's, and less PCA's."""
    if "psnr" not in arrays:
        return None
    psnr = arrays["psnr"]
    lead = f"The PSNR of {len(psnr):,} test images, from {psnr.min():.2f} to {psnr.max():.2f} dB."
    if "pca_psnr" not in arrays:
        body = _histogram("PSNR of each image", [("functa", psnr)])
    else:
        pca = arrays["pca_psnr"]
        gain = psnr - pca
        lead += " The baseline is PCA of the same cells to the same number of floats, which "
        lead += f"{np.mean(gain > 0):.1%} of the images are above."
        body = _histogram("PSNR of each image", [("functa", psnr), ("PCA", pca)])
        body += _histogram("Gain of each image over PCA", [("functa less PCA", gain)])
    return Section(
        "distribution", "Quality of every test image", lead, f'<div class="charts">{body}</div>'
    )


def _histogram(title: str, groups: list[tuple[str, np.ndarray]]) -> str:
    legend = html.legend([f"{label}, mean {values.mean():.2f} dB" for label, values in groups])
    chart = charts.histogram(groups, x_label="dB", description=title)
    return html.chart(title, legend, chart)


def latents(arrays: Arrays) -> Section | None:
    """The latent channels of every example as pictures."""
    if "latents" not in arrays:
        return None
    values = arrays["latents"][:MOST_EXAMPLES].astype(np.float32)
    n, i, j, d = values.shape
    limits = np.abs(values).max(axis=(0, 1, 2))
    shown = values[..., :MOST_CHANNELS] if i * j > 1 else values
    colours = image_io.diverging(shown, limits[: shown.shape[-1]])  # [n, i, j, d, 4]
    body = ""
    for index in range(n):
        if "originals" in arrays and index < len(arrays["originals"]):
            body += html.image(arrays["originals"][index], alt=f"original {index + 1}")
        else:
            body += f"<span>{index + 1}</span>"
        drawn = (
            [_rows(colours[index, 0, 0])] if i * j == 1 else colours[index].transpose(2, 0, 1, 3)
        )
        kind = "vector" if i * j == 1 else "channels"
        tiles = "".join(
            html.image(tile, alt=f"channel {channel}", kind="pixels framed")
            for channel, tile in enumerate(drawn)
        )
        body += f'<div class="{kind}">{tiles}</div>'
    lead = f"What is stored of an image: {i} × {j} × {d} = {i * j * d:,} numbers. "
    lead += "One square a number." if i * j == 1 else f"One picture of {i} × {j} a channel"
    if i * j > 1:
        lead += f", the first {MOST_CHANNELS} of {d}." if d > MOST_CHANNELS else "."
    lead += " Red is positive, blue negative; full colour is the channel's largest size here."
    return Section("latents", "Latents", lead, f'<div class="latents">{body}</div>')


def _rows(colours: np.ndarray) -> np.ndarray:
    """[d, 4] -> [rows, at most 64, 4]."""
    across = min(len(colours), 64)
    padding = -len(colours) % across
    return np.pad(colours, ((0, padding), (0, 0))).reshape(-1, across, 4)


def scales(arrays: Arrays) -> Section | None:
    """The same latents decoded at one, four and sixteen times the resolution."""
    body = resolutions(arrays, "decoded")
    lead = (
        "A field has no resolution: the same latents, asked for the values at more positions. "
        "Nothing between the pixels was ever trained on."
    )
    return Section("scales", "Decoding at any resolution", lead, body) if body else None


def resolutions(arrays: Arrays, kind: str) -> str:
    """A row an image of the arrays KIND_1x, KIND_2x, ... [n, H, W, c], as far as there are; "" without any."""
    names = sorted(
        (name for name in arrays if name.startswith(f"{kind}_")),
        key=lambda name: arrays[name].shape[1],
    )
    if not names:
        return ""
    body = ""
    for index in range(len(arrays[names[0]])):
        row = ""
        for name in names:
            image = arrays[name][index]
            h, w, _ = image.shape
            caption = f"{name.removeprefix(f'{kind}_').replace('x', '×')}: {h} × {w} pixels"
            picture = image_io.shrink(image, MOST_PIXELS)
            if len(picture) < h:
                caption += f", shown at {picture.shape[0]} × {picture.shape[1]}"
            drawn = "pixels" if max(h, w) < 200 else "smooth"
            row += html.figure(html.image(picture, alt=caption, kind=drawn), caption)
        body += f'<div class="row scales">{row}</div>'
    return body


def inner_steps(arrays: Arrays) -> Section | None:
    """The image growing over the inner steps, the original at the end."""
    if "inner_steps" not in arrays:
        return None
    body = ""
    for index, film in enumerate(arrays["inner_steps"]):
        row = ""
        original = arrays["originals"][index] if "originals" in arrays else None
        for step, frame in enumerate(film):
            caption = f"step {step}" if step else "start"
            if original is not None:
                caption += f", {_decibels(original, frame)}"
            row += html.figure(html.image(frame, alt=caption), caption)
        if original is not None:
            row += html.figure(html.image(original, alt="original"), "original")
        body += f'<div class="row film">{row}</div>'
    steps = arrays["inner_steps"].shape[1] - 1
    lead = (
        "All images start from the same latents, zero; "
        f"{steps} gradient steps on the latents alone make the image."
    )
    return Section("inner-steps", "An image in the inner loop", lead, body)
