"""Storage size and PSNR of latents in fewer bits, beside PCA, JPEG and WebP."""

import functools
import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from functa.data.functaset import format
from functa.evaluation import pca_baseline
from functa.evaluation.analysis import quantization
from functa.evaluation.analysis.table import PSNR_COLUMNS, Column, Table
from functa.evaluation.analysis.trained_field import (
    TrainedField,
    image_mse,
    mean_psnr,
    psnr_metrics,
)
from functa.fields import psnr
from functa.fields.pixels import to_float

QUANTIZER_BITS = (8, 6, 5, 4, 3)
CODEC_QUALITIES = (5, 15, 30, 50, 70, 85, 95)  # of JPEG and WebP; 100 is the best
RATE_COLUMNS = (
    Column("method", "", "compression method"),
    Column("setting", "", "setting of the method"),
    Column("bytes", "bytes", "size of one image, mean over images"),
    Column("entropy_bytes", "bytes", "ESTIMATED size after entropy coding"),
    Column("flat_bytes", "bytes", "size of a uniform gray image: headers and tables"),
    PSNR_COLUMNS[0],
)


class StoredLatents(NamedTuple):
    """Latents of the evaluated images in one storage format.

    Attributes:
      name: name of the format.
      bytes: size of the latents of one image.
      entropy_bytes: estimate of the size after entropy coding; None for floats.
      mse: [n], mean squared errors of the decoded images.
    """

    name: str
    bytes: int
    entropy_bytes: float | None
    mse: np.ndarray


@functools.lru_cache(maxsize=1)  # both tables use them
def stored_latents(trained_field: TrainedField) -> tuple[StoredLatents, ...]:
    """The latents in all formats: those of functasets, and uniform quantizers."""
    return (*_functaset_formats(trained_field), *_quantized(trained_field))


def _functaset_formats(trained_field: TrainedField) -> Iterator[StoredLatents]:
    latents, shape = trained_field.fitted.latents, trained_field.field.latent_shape
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        stored, scale = format.quantize(latents, dtype)
        entropy_bytes = None
        if scale is not None:
            known, _ = format.quantize(trained_field.reference_latents, dtype)
            known, symbols = (values.astype(np.int32) + 128 for values in (known, stored))
            bits = quantization.code_length(known.reshape(-1, shape[2]), symbols, 256)
            entropy_bytes = float(bits.mean()) / 8 + scale[0].nbytes
        size = format.RecordLayout(shape, dtype).latent_bytes
        mse = trained_field.mse(format.dequantize(stored, scale))
        yield StoredLatents(dtype, size, entropy_bytes, mse)


def _quantized(trained_field: TrainedField) -> Iterator[StoredLatents]:
    latents = trained_field.fitted.latents
    known = trained_field.reference_latents.reshape(-1, latents.shape[-1])
    for bits in QUANTIZER_BITS:
        quantizer = quantization.fit_quantizer(known, bits)
        symbols = quantizer.encode(latents)
        length = quantization.code_length(quantizer.encode(known), symbols, 2**bits)
        size = math.ceil(latents[0].size * bits / 8)
        mse = trained_field.mse(quantizer.decode(symbols))
        yield StoredLatents(f"{bits} bits", size, float(length.mean()) / 8, mse)


def quantization_table(trained_field: TrainedField) -> dict[str, Table]:
    """PSNR by storage format."""
    exact = mean_psnr(trained_field.fitted.mse[:, -1])
    rows = []
    for stored in stored_latents(trained_field):
        metrics = psnr_metrics(stored.mse)
        row = {"stored": stored.name, "bytes": stored.bytes, **metrics}
        rows.append(row | {"lost": exact - metrics["psnr"]})
    columns = (
        Column("stored", "", "format of the latents"),
        Column("bytes", "", "size of the latents of one image, scales included"),
        *PSNR_COLUMNS,
        Column("lost", "dB", "psnr of the unrounded latents minus this one"),
    )
    note, count = _quantizer_note(trained_field), len(trained_field.images)
    return {"quantization": Table("PSNR by storage format", note, count, columns, rows)}


def rate_distortion(trained_field: TrainedField) -> dict[str, Table]:
    """Bytes per image and PSNR of functa, PCA, JPEG and WebP."""
    formats = [stored for stored in stored_latents(trained_field) if stored.name != "float32"]
    rows = [
        _row("functa", stored.name, stored.bytes, mean_psnr(stored.mse), stored.entropy_bytes)
        for stored in formats
    ]
    budgets = sorted({stored.bytes for stored in formats}, reverse=True)
    rows += pca_rows(trained_field, budgets)
    rows += codec_rows(trained_field.images, "JPEG", optimize=True)
    rows += codec_rows(trained_field.images, "WebP", method=6)
    note, count = _rate_note(trained_field), len(trained_field.images)
    return {"rate_distortion": Table("PSNR by bytes per image", note, count, RATE_COLUMNS, rows)}


def _row(method: str, setting: str, size: float, psnr: float, entropy=None, flat=None):
    values = (method, setting, float(size), entropy, flat, psnr)
    return dict(zip((column.key for column in RATE_COLUMNS), values, strict=True))


def pca_rows(trained_field: TrainedField, budgets: list[int]) -> list[dict[str, Any]]:
    """Rows of PCA of the same cells: as many floats as the field has, then the best in each budget.

    Args:
      budgets: bytes per image.
    """
    i, j, d = trained_field.field.latent_shape
    images, train = trained_field.images, trained_field.train
    count = pca_baseline.num_training_images(images.shape[1:], train.num_examples)
    train_images = train.read(np.arange(count))["image"]
    size = images[0].size // (i * j)
    pca = pca_baseline.fit_cell_pca(train_images, grid=(i, j), components=size)
    floats = min(d, size)
    exact = mean_psnr(pca.truncate(floats).mse(images))
    rows = [_row("PCA", f"{floats} floats per cell, float32", 4 * i * j * floats, exact)]
    coefficients = pca.coefficients(images)
    known = pca.coefficients(trained_field.reference_images).reshape(-1, size)
    quantizers = {bits: quantization.fit_quantizer(known, bits) for bits in QUANTIZER_BITS}
    psnr_by_bits = {
        bits: _truncated_psnr(coefficients, quantizer, images[0].size)
        for bits, quantizer in quantizers.items()
    }
    settings = [_best_setting(psnr_by_bits, budget * 8 // (i * j)) for budget in budgets]
    for bits, k in filter(None, dict.fromkeys(settings)):
        known_symbols, symbols = (
            quantizers[bits].encode(values)[..., :k] for values in (known, coefficients)
        )
        length = quantization.code_length(known_symbols, symbols, 2**bits)
        setting, best = f"{k} floats per cell, {bits} bits", float(psnr_by_bits[bits][k - 1])
        stored = math.ceil(i * j * k * bits / 8)
        rows.append(_row("PCA", setting, stored, best, float(length.mean()) / 8))
    return rows


def _truncated_psnr(
    coefficients: np.ndarray, quantizer: quantization.Quantizer, image_size: int
) -> np.ndarray:
    """PSNR in dB if the first k coefficients of each cell are quantized and the others dropped.

    Args:
      coefficients: [n, cells, size].
      image_size: number of values of an image.
    Returns:
      [size], mean over images, for k = 1, 2, ..., size.
    """
    rounded = quantizer.decode(quantizer.encode(coefficients))
    energy, rounding = (
        np.square(values, dtype=np.float64).sum(1)
        for values in (coefficients, rounded - coefficients)
    )
    dropped = np.maximum(energy.sum(-1, keepdims=True) - energy.cumsum(-1), 0)
    return psnr.psnr((dropped + rounding.cumsum(-1)) / image_size).mean(0)


def _best_setting(
    psnr_by_bits: dict[int, np.ndarray], bits_per_cell: int
) -> tuple[int, int] | None:
    """Returns (bits, coefficients) of the highest PSNR within a budget; None if no coefficient fits."""
    best, highest = None, -np.inf
    for bits, values in psnr_by_bits.items():
        for k, value in enumerate(values[: bits_per_cell // bits], start=1):
            if value > highest:
                best, highest = (bits, k), value
    return best


def codec_rows(images: np.ndarray, codec: str, **options: Any) -> list[dict[str, Any]]:
    """Rows of a Pillow format at each quality, for images [n, h, w, c] uint8."""
    rows = []
    for quality in CODEC_QUALITIES:
        files = [_encode(image, codec, quality=quality, **options) for image in images]
        decoded = np.stack([_decode(file, images.shape[1:]) for file in files])
        mse = image_mse(to_float(decoded), to_float(images))
        flat = len(_encode(np.full_like(images[0], 128), codec, quality=quality, **options))
        size = float(np.mean([len(file) for file in files]))
        rows.append(_row(codec, f"quality {quality}", size, mean_psnr(mse), flat=float(flat)))
    return rows


def _encode(image: np.ndarray, codec: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.squeeze(image, -1) if image.shape[-1] == 1 else image).save(
        stream, format=codec, **options
    )
    return stream.getvalue()


def _decode(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("L" if shape[-1] == 1 else "RGB")).reshape(shape)


def _quantizer_note(trained_field: TrainedField) -> str:
    count = len(trained_field.reference_latents)
    return (
        "int8: one scale per image and channel, as in functasets. N bits: a uniform quantizer per "
        f"channel, whose range minimizes the squared error of the latents of the first {count:,} "
        "training images; all images share it, so it does not count."
    )


def _rate_note(trained_field: TrainedField) -> str:
    h, w, c = trained_field.field.image_shape
    count = pca_baseline.num_training_images((h, w, c), trained_field.train.num_examples)
    chroma = "" if c == 1 else ", chroma at half resolution"
    return (
        f"{_quantizer_note(trained_field)} entropy_bytes estimates an ideal entropy coder with one "
        "table per channel, counted on those training images. The field, the PCA basis and the tables "
        "are shared by all images and do not count. PCA: of the same cells, fitted to "
        f"{count:,} training images; first with as many floats as the field, then, for the size of "
        "each functa row, the best number of floats and bits on these images, with the same "
        f"quantizers. JPEG and WebP: complete files of Pillow{chroma}, headers included, which matter "
        f"at {h}x{w} pixels: see flat_bytes."
    )
