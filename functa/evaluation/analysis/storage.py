"""What latents cost and what is lost: stored in fewer bits, beside PCA, JPEG and WebP."""

import functools
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from functa.data.functaset import format
from functa.evaluation import pca_baseline
from functa.evaluation.analysis import quantization
from functa.evaluation.analysis.table import Column, Table
from functa.evaluation.analysis.trained_field import Subject, image_mse, mean_psnr, scores, to_float
from functa.fields import psnr as metrics

BITS = (8, 6, 5, 4, 3)  # a value, by the uniform quantiser
QUALITIES = (5, 15, 30, 50, 70, 85, 95)  # of JPEG and WebP, 100 the best


def _uniform_note(subject: Subject) -> str:
    return (
        "int8: a scale for each image and channel, as functasets have it. N bits: a uniform quantiser "
        f"for each channel, its range fitted to the latents of the first {len(subject.reference_latents):,} training "
        "images, to the least squared error and shared by all, so that it costs an image nothing."
    )


class Stored(NamedTuple):
    """Latents of all images in one form: its name, bytes of an image, bytes by the entropy estimate
    (None for floats), errors [n] of the images decoded from it."""

    name: str
    bytes: float
    entropy_bytes: float | None
    mse: np.ndarray


@functools.lru_cache(maxsize=1)  # two measures want it
def stored_forms(subject: Subject) -> tuple[Stored, ...]:
    """float32, float16, bfloat16, int8, and BITS bits."""
    return (*_as_functasets(subject), *_in_few_bits(subject))


def _as_functasets(subject: Subject) -> Iterator[Stored]:
    d = subject.field.latent_shape[2]
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        layout = format.RecordLayout(subject.field.latent_shape, dtype)
        stored, scale = format.round_latents(subject.fitted.latents, dtype)
        restored = format.restore_latents(stored, scale)
        estimate = None
        if scale is not None:
            known, _ = format.round_latents(subject.reference_latents, dtype)
            length = quantization.code_length(
                known.reshape(-1, d).astype(np.int32) + 128, stored.astype(np.int32) + 128, 256
            )
            estimate = float(length.mean()) / 8 + scale[0].nbytes
        yield Stored(dtype, layout.latent_bytes, estimate, subject.mse(restored))


def _in_few_bits(subject: Subject) -> Iterator[Stored]:
    latents, d = subject.fitted.latents, subject.field.latent_shape[2]
    known = subject.reference_latents.reshape(-1, d)
    for bits in BITS:
        quantiser = quantization.fit_quantiser(known, bits)
        symbols = quantiser.symbols(latents)
        length = quantization.code_length(quantiser.symbols(known), symbols, 2**bits)
        yield Stored(
            f"{bits} bits",
            quantization.packed_bytes(latents[0].size, bits),
            float(length.mean()) / 8,
            subject.mse(quantiser.restore(symbols)),
        )


def quantisation(subject: Subject) -> dict[str, Table]:
    """PSNR of latents stored in fewer and fewer bits."""
    exact = mean_psnr(subject.fitted.mse[:, -1])
    rows = []
    for form in stored_forms(subject):
        found = scores(form.mse)
        lost = exact - found["psnr"]
        rows.append({"stored": form.name, "bytes": form.bytes, **found, "lost": lost})
    columns = (
        Column("stored", "", "how the latents are stored"),
        Column("bytes", "", "of the latents of one image, scales included"),
        Column("psnr", "dB", "mean over images of each image's PSNR"),
        Column("psnr_of_mean_mse", "dB", "PSNR of the mean error, the other convention"),
        Column("lost", "dB", "psnr of the inner loop's own latents less this one"),
    )
    count = len(subject.images)
    return {"quantisation": Table("PSNR by storage", _uniform_note(subject), count, columns, rows)}


def rate_distortion(subject: Subject) -> dict[str, Table]:
    """(bytes of an image, PSNR) of functa, PCA, JPEG and WebP."""
    rows = []
    forms = [form for form in stored_forms(subject) if form.name != "float32"]
    for form in forms:
        rows.append(_row("functa", form.name, form.bytes, mean_psnr(form.mse), form.entropy_bytes))
    rows += pca_rows(subject, sorted({int(form.bytes) for form in forms}, reverse=True))
    rows += codec_rows(subject.images, "JPEG", optimize=True)
    rows += codec_rows(subject.images, "WebP", method=6)
    columns = (
        Column("method", "", "what an image is stored as"),
        Column("setting", "", "of the method"),
        Column("bytes", "bytes", "of one image, mean over images"),
        Column("entropy_bytes", "bytes", "ESTIMATE of bytes after entropy coding"),
        Column(
            "flat_bytes", "bytes", "of a plain grey image in the same format: headers and tables"
        ),
        Column("psnr", "dB", "mean over images of each image's PSNR"),
    )
    return {"rate_distortion": Table(
        "PSNR by bytes an image", _rate_note(subject), len(subject.images), columns, rows
    )}  # fmt: skip


def _rate_note(subject: Subject) -> str:
    h, w, c = subject.field.image_shape
    count = pca_baseline.pca_images(subject.train, subject.field)
    chroma = "" if c == 1 else ", chroma at half resolution"
    return (
        f"{_uniform_note(subject)} entropy_bytes is an estimate, no file: what an ideal coder would spend "
        "with one table a channel, counted on those training images. The field, PCA's basis and "
        "the tables are shared by all images and not counted. PCA: of the same cells, fitted to "
        f"{count:,} training images; first as many floats as the field has, then, within the bytes "
        "of every functa row, the best on these images of all numbers of floats and bits, "
        f"quantised alike. JPEG and WebP: whole files by Pillow{chroma}, headers included, which "
        f"weigh much at {h}x{w} pixels: see flat_bytes."
    )


def _row(method: str, setting: str, size: float, psnr: float, entropy=None, flat=None):
    return {
        "method": method, "setting": setting, "bytes": float(size), "entropy_bytes": entropy,
        "flat_bytes": flat, "psnr": psnr,
    }  # fmt: skip


def pca_rows(subject: Subject, budgets: list[int]) -> list[dict[str, Any]]:
    """PCA of the same cells: to the field's number of floats, and the best within each budget.

    Args:
      budgets: bytes of an image.
    """
    grid, d = subject.field.latent_shape[:2], subject.field.latent_shape[2]
    images = to_float(subject.images)
    size = images[0].size // (grid[0] * grid[1])
    mean, basis = pca_baseline.fit_pca(subject.train, subject.field, size)
    exact = metrics.pca_mse(images, grid, mean, basis[:, :d])
    floats = grid[0] * grid[1] * min(d, size)
    rows = [_row("PCA", f"{min(d, size)} floats a cell, float32", 4 * floats, mean_psnr(exact))]

    def coefficients(cells):
        return (cells - mean.astype(np.float32)) @ basis.astype(np.float32)

    found = coefficients(metrics.image_cells(images, grid))  # [n, i * j, size]
    known = metrics.image_cells(to_float(subject.reference_images), grid)
    known = coefficients(known.reshape(-1, size))
    energy = np.square(found, dtype=np.float64).sum(1)
    beyond = energy.sum(-1, keepdims=True) - energy.cumsum(-1)  # of the coefficients left out
    psnr: dict[int, np.ndarray] = {}  # by bits, then number of coefficients less one
    coded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for bits in BITS:
        quantiser = quantization.fit_quantiser(known, bits)
        symbols = quantiser.symbols(found)
        rounding = np.square(quantiser.restore(symbols) - found, dtype=np.float64).sum(1)
        mse = (np.maximum(beyond, 0) + rounding.cumsum(-1)) / images[0].size
        psnr[bits] = metrics.psnr(mse).mean(0)
        coded[bits] = quantiser.symbols(known).astype(np.uint8), symbols.astype(np.uint8)
    chosen = {}
    for budget in budgets:
        most = {bits: min(size, budget * 8 // (bits * grid[0] * grid[1])) for bits in BITS}
        fits = [(float(psnr[bits][:k].max()), bits) for bits, k in most.items() if k]
        if fits:
            best, bits = max(fits)
            k = int(psnr[bits][: most[bits]].argmax()) + 1
            chosen[k, bits] = best
    for (k, bits), best in chosen.items():
        known_symbols, symbols = coded[bits]
        length = quantization.code_length(known_symbols[:, :k], symbols[..., :k], 2**bits)
        stored = quantization.packed_bytes(grid[0] * grid[1] * k, bits)
        name = f"{k} floats a cell, {bits} bits"
        rows.append(_row("PCA", name, stored, best, float(length.mean()) / 8))
    return rows


def codec_rows(images: np.ndarray, codec: str, **options: Any) -> list[dict[str, Any]]:
    """A row for each of QUALITIES: images [n, h, w, c] uint8 in Pillow's format `codec`."""
    rows = []
    for quality in QUALITIES:
        sizes, errors = [], []
        for image in images:
            file = _encode(image, codec, quality=quality, **options)
            sizes.append(len(file))
            decoded = _decode(file, image.shape)
            errors.append(image_mse(to_float(decoded)[None], to_float(image)[None]))
        mse = np.concatenate(errors)
        flat = len(_encode(np.full_like(images[0], 128), codec, quality=quality, **options))
        setting = f"quality {quality}"
        rows.append(_row(codec, setting, float(np.mean(sizes)), mean_psnr(mse), flat=float(flat)))
    return rows


def _encode(image: np.ndarray, codec: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    grey = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if grey else image).save(stream, format=codec, **options)
    return stream.getvalue()


def _decode(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        array = np.asarray(image.convert("L" if shape[-1] == 1 else "RGB"))
    return array.reshape(shape)
