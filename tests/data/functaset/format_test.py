import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout

INT64 = np.iinfo(np.int64)


def reference_int8(latents):
    """int8 quantization in Python, one value at a time."""
    k, i, j, d = latents.shape
    stored, scale = np.zeros(latents.shape, np.int8), np.zeros((k, d), np.float16)
    positive = np.arange(2**15 - 1024, dtype=np.uint16).view(np.float16)  # finite, ascending
    for n, channel in np.ndindex(k, d):
        largest = max(abs(float(x)) for x in latents[n, :, :, channel].flat)
        exact = float(np.float32(largest) / np.float32(127))
        scale[n, channel] = next(s for s in positive if float(s) >= exact)
        for row, column in np.ndindex(i, j):
            if scale[n, channel] > 0:
                ratio = latents[n, row, column, channel] / np.float32(scale[n, channel])
                stored[n, row, column, channel] = round(float(ratio))
    return stored, scale


def test_int8_equals_the_reference():
    latents = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    latents *= np.float32([1e-7, 1e-3, 1.0, 1e4])
    latents[2, :, :, 1] = 0
    stored, scale = format.quantize(latents, "int8")
    expected_stored, expected_scale = reference_int8(latents)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(stored, expected_stored)
    assert np.abs(stored.astype(int)).max() <= 127
    error = np.abs(format.dequantize(stored, scale) - latents)
    assert (error <= scale.astype(np.float32)[:, None, None] / 2 * 1.001).all()


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("float32", 0.0)]
)
def test_floats_are_rounded_to_the_nearest(dtype, precision):
    latents = np.random.default_rng(0).normal(size=(50, 2, 2, 3)).astype(np.float32)
    stored, scale = format.quantize(latents, dtype)
    assert scale is None
    restored = format.dequantize(stored, None)
    assert restored.dtype == np.float32
    assert (np.abs(restored - latents) <= precision * np.abs(latents)).all()
    np.testing.assert_array_equal(format.quantize(restored, dtype)[0], stored)


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504), ("int8", 65504 * 127)])
def test_values_that_overflow_become_infinite(dtype, largest):
    latents = np.full((1, 1, 1, 1), largest, np.float32)
    assert format.dequantize(*format.quantize(latents, dtype))[0, 0, 0, 0] == largest
    overflow = format.dequantize(*format.quantize(latents * np.float32(1.01), dtype))
    assert not np.isfinite(overflow).any()


@pytest.mark.parametrize("dtype", format.STORAGE_DTYPES)
def test_tfds_parses_records_like_its_own(dtype):
    """At the limits of every range, TFDS reads the same values as from a record that it made."""
    layout = RecordLayout(latent_shape=(2, 3, 2), dtype=dtype)
    latents = np.random.default_rng(0).normal(size=(6, 2, 3, 2)).astype(np.float32)
    stored, scale = format.quantize(latents, dtype)
    arrays = {
        "label": np.array([-1, 0, 127, 128, INT64.max, INT64.min]),
        "id": np.array([0, 1, 2**31, 2**32 + 5, 2**49 - 1, 300]),
        "copy": np.array([0, 1, 127, 128, 2**21 - 1, 5]),
        "psnr": np.float32([-3.5, 0, 20.25, 35.1, 100, 1e-3]),
    }
    records = layout.pack(stored=stored, scale=scale, **arrays)
    features = {
        "latents": tfds.features.Tensor(shape=(2, 3, 2), dtype=stored.dtype.type, encoding="bytes"),
        "label": tfds.features.Scalar(np.int64),
        "id": tfds.features.Scalar(np.int64),
        "copy": tfds.features.Scalar(np.int32),
        "psnr": tfds.features.Scalar(np.float32),
    }
    if scale is not None:
        features["scale"] = tfds.features.Tensor(shape=(2,), dtype=np.float16, encoding="bytes")
        arrays["scale"] = scale
    features = tfds.features.FeaturesDict(features)
    for k, record in enumerate(records):
        example = {"latents": stored[k]} | {name: values[k] for name, values in arrays.items()}
        expected = features.deserialize_example_np(features.serialize_example(example))
        actual = features.deserialize_example_np(record)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
    unpacked = layout.unpack(records)
    expected = arrays | {
        "latents": latents_of(stored, dtype),
        "label": arrays["label"].astype(np.int32),
    }
    assert unpacked.keys() == expected.keys()
    for name, values in unpacked.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert {name: values.dtype for name, values in unpacked.items() if name != "scale"} == {
        "latents": np.dtype(dtype),
        "label": np.int32,
        "id": np.int64,
        "copy": np.int32,
        "psnr": np.float32,
    }
    restored = format.dequantize(stored, scale)
    np.testing.assert_array_equal(format.float32_latents(unpacked), restored)


def latents_of(stored, dtype):
    return stored.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else stored


@pytest.mark.parametrize(("name", "number"), [("id", -1), ("id", 2**49), ("copy", 2**21)])
def test_numbers_that_do_not_fit_are_refused(name, number):
    layout = RecordLayout(latent_shape=(1, 1, 1), dtype="float32")
    values = {key: np.array([0]) for key in ("label", "id", "copy")} | {name: np.array([number])}
    with pytest.raises(ValueError, match=f"{name} .*{number}"):
        layout.pack(stored=np.zeros((1, 1, 1, 1), np.float32), scale=None, psnr=[1], **values)


def test_foreign_records_are_refused():
    layout = RecordLayout(latent_shape=(1, 1, 2), dtype="float16")
    rest = {"scale": None} | {name: [0] * 3 for name in ("label", "id", "copy", "psnr")}
    records = layout.pack(stored=np.zeros((3, 1, 1, 2), np.float16), **rest)
    changed = bytearray(records[1])
    changed[layout.fixed[10]] ^= 1
    with pytest.raises(ValueError, match="record 1 "):
        layout.unpack([records[0], bytes(changed), records[2]])
    with pytest.raises(ValueError, match="record 2 has 10 bytes"):
        layout.unpack([records[0], records[1], records[2][:10]])


def test_a_record_of_int8_latents_is_hardly_larger_than_its_latents():
    layout = RecordLayout(latent_shape=(32, 32, 64), dtype="int8")
    assert layout.latent_bytes == 32 * 32 * 64 + 64 * 2
    assert layout.record_bytes == layout.latent_bytes + 127
