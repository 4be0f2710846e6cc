"""Quantizers, code lengths, PCA and codecs, against slow computations."""

import io

import numpy as np
import pytest
from PIL import Image

from functa.data.functaset import format
from functa.evaluation.analysis import quantization, storage, trained_field
from functa.evaluation.analysis.trained_field import image_mse
from tests.support.analysis_runs import COUNT, make_trained_field, psnr


def test_quantizer_decodes_to_the_nearest_bin_center():
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 3)).astype(np.float32) * np.float32([1, 5, 0]) + np.float32(7)
    for bits in (1, 3, 8):
        quantizer = quantization.fit_quantizer(values, bits)
        symbols = quantizer.encode(values)
        assert symbols.min() >= 0
        assert symbols.max() < 2**bits
        decoded = quantizer.decode(symbols)
        centers = quantizer.decode(np.arange(2**bits)[:, None])
        for k in range(3):
            nearest = [centers[np.argmin(np.abs(centers[:, k] - v)), k] for v in values[:, k]]
            np.testing.assert_allclose(decoded[:, k], nearest, atol=1e-5)
        np.testing.assert_allclose(decoded[:, 2], 7)


def test_few_bits_clip_outliers():
    values = np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)
    values[0] = 20
    error = {}
    for bits in (3, 4, 12):
        quantizer = quantization.fit_quantizer(values, bits)
        error[bits] = np.square(quantizer.decode(quantizer.encode(values)) - values).mean()
    error_of_whole_range = (2 * 20 / 2**3) ** 2 / 12
    assert error[3] < error_of_whole_range / 4
    assert error[12] < error[4] / 10 < error[3]


def test_code_length_is_that_of_the_frequencies_of_known_symbols():
    random = np.random.default_rng(0)
    known, symbols = random.integers(0, 4, (30, 2)), random.integers(0, 4, (5, 3, 2))
    expected = np.zeros(5)
    for image, place, channel in np.ndindex(5, 3, 2):
        count = sum(row[channel] == symbols[image, place, channel] for row in known)
        expected[image] -= np.log2((count + 0.5) / (30 + 2))
    np.testing.assert_allclose(quantization.code_length(known, symbols, 4), expected)


def test_fewer_bits_have_a_lower_psnr(run, subject):
    table = storage.quantization_table(subject)["quantization"]
    rows = {row["stored"]: row for row in table.rows}
    assert rows["float32"]["lost"] == pytest.approx(0, abs=1e-5)
    names = ("float32", "8 bits", "6 bits", "5 bits", "4 bits", "3 bits")
    values = [rows[name]["psnr"] for name in names]
    assert max(np.diff(values)) < 0.02
    assert values[-1] < values[0] - 0.5
    assert rows["int8"]["lost"] < rows["5 bits"]["lost"]
    half = subject.fitted.latents.astype(np.float16).astype(np.float32)
    decoded = np.asarray(subject.field(run[1]["field"], half))
    expected = psnr(image_mse(decoded, subject.targets))
    assert rows["float16"]["psnr"] == pytest.approx(expected, abs=1e-4)
    layout = format.RecordLayout(subject.field.latent_shape, "int8")
    assert {name: row["bytes"] for name, row in rows.items()} == {
        "float32": 128, "float16": 64, "bfloat16": 64, "int8": layout.latent_bytes,
        "8 bits": 32, "6 bits": 24, "5 bits": 20, "4 bits": 16, "3 bits": 12,
    }  # fmt: skip


def test_large_latents_have_fewer_reference_images(run, monkeypatch):
    """Latents of 2x2x8: those of 21 images have 672 values."""
    monkeypatch.setattr(trained_field, "_REFERENCE_VALUES", 32 * 21 + 31)
    assert make_trained_field(*run).reference_latents.shape == (21, 2, 2, 8)


def test_pca_rows_fit_their_budgets(subject):
    budgets = [40, 24, 12]
    floats, *quantized = storage.pca_rows(subject, budgets)
    assert floats["bytes"] == 4 * 32
    assert all(row["bytes"] <= most for row, most in zip(quantized, budgets, strict=True))
    assert all(row["entropy_bytes"] < 1.2 * row["bytes"] for row in quantized)
    assert quantized[0]["psnr"] > quantized[1]["psnr"] > quantized[2]["psnr"]


def test_quantized_pca_equals_a_slow_reconstruction(run, subject, monkeypatch):
    """Two bytes hold one coefficient of 3 bits for each of 4 cells."""
    monkeypatch.setattr(storage, "QUANTIZER_BITS", (3,))
    floats, row = storage.pca_rows(subject, [2])

    def cells_of(images):
        cells = (images / 255).reshape(-1, 2, 4, 2, 4).swapaxes(2, 3)
        return cells.reshape(-1, 16)

    train, own = cells_of(run[2]["train"].read(np.arange(96))["image"]), cells_of(subject.images)
    mean = train.mean(0)
    basis = np.linalg.svd(train - mean, full_matrices=False)[2]

    def psnr_of(decoded, k):
        error = mean + decoded @ basis[:k] - own
        return psnr(np.square(error).reshape(COUNT, -1).mean(1))

    assert floats["psnr"] == pytest.approx(psnr_of((own - mean) @ basis[:8].T, 8), abs=1e-4)
    assert (row["setting"], row["bytes"]) == ("1 floats per cell, 3 bits", 2)
    first = basis[:1].T
    quantizer = quantization.fit_quantizer(((train - mean) @ first).astype(np.float32), 3)
    symbols = quantizer.encode(((own - mean) @ first).astype(np.float32))
    assert row["psnr"] == pytest.approx(psnr_of(quantizer.decode(symbols), 1), abs=2e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_codec_rows_measure_complete_files(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, channels), np.uint8)
    for codec, options in (("JPEG", {"optimize": True}), ("WebP", {"method": 6})):
        rows = storage.codec_rows(images, codec, **options)
        assert [row["setting"] for row in rows][0::6] == ["quality 5", "quality 95"]
        assert rows[0]["psnr"] < rows[-1]["psnr"]
        assert all(0 < row["flat_bytes"] < row["bytes"] for row in rows)
        sizes, errors = [], []
        for image in images:
            stream = io.BytesIO()
            pixels = image[..., 0] if channels == 1 else image
            Image.fromarray(pixels).save(stream, codec, quality=50, **options)
            sizes.append(len(stream.getvalue()))
            decoded = np.asarray(Image.open(stream).convert("L" if channels == 1 else "RGB"))
            errors.append(np.square((decoded.astype(float) - pixels) / 255).mean())
        assert rows[3]["bytes"] == np.mean(sizes)
        assert rows[3]["psnr"] == pytest.approx(psnr(errors), abs=1e-3)
