"""functa.data.functaset.reader and the format and writer behind it: what TFDS sees, and what damage is found."""

import json
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from functa.data.functaset import (
    format,
)
from functa.data.functaset import (
    reader as functaset,
)
from functa.data.functaset import (
    writer as functaset_writer,
)
from functa.data.functaset.format import RecordLayout
from tests.support import functaset_sets

DTYPES = tuple(format.STORED_AS)
STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}  # largest relative rounding
INT64 = np.iinfo(np.int64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{dtype: (directory, records by split)}."""
    root = tmp_path_factory.mktemp("sets")
    return {
        dtype: (root / dtype, functaset_sets.write(root / dtype, dtype=dtype)) for dtype in DTYPES
    }


@pytest.fixture
def whole(tmp_path):
    """(directory, manifest as a dict) of a functaset to damage."""
    directory = tmp_path / "functaset"
    functaset_sets.write(directory)
    return directory, json.loads((directory / "manifest.json").read_text())


def rewrite(directory, manifest):
    """Writes a changed manifest with a right digest."""
    manifest["digest"] = format.json_digest(manifest | {"digest": ""})
    (directory / "manifest.json").write_text(json.dumps(manifest))


def latents_of(record, dtype):
    """What the docstring of functaset.py tells other programs to do."""
    if dtype == "bfloat16":
        return record["latents"].view(ml_dtypes.bfloat16).astype(np.float32)
    if dtype == "int8":
        return record["latents"] * record["scale"].astype(np.float32)
    return record["latents"].astype(np.float32)


# --- rounding


def slow_int8(latents):
    """Reference: one number at a time, in exact arithmetic but for the stored scale."""
    k, i, j, d = latents.shape
    stored, scale = np.zeros(latents.shape, np.int8), np.zeros((k, d), np.float16)
    for n in range(k):
        for channel in range(d):
            largest = max(abs(float(x)) for x in latents[n, :, :, channel].flat)
            candidates = np.arange(2**15 - 1024, dtype=np.uint16).view(np.float16)  # finite, rising
            exact = float(np.float32(largest) / np.float32(127))
            scale[n, channel] = next(
                s for s in candidates[_near(candidates, exact) :] if float(s) >= exact
            )
            for row in range(i):
                for column in range(j):
                    if scale[n, channel] > 0:
                        ratio = latents[n, row, column, channel] / np.float32(scale[n, channel])
                        stored[n, row, column, channel] = round(float(ratio))
    return stored, scale


def _near(candidates, exact):
    return max(0, int(np.searchsorted(candidates.astype(np.float64), exact)) - 2)


def test_int8_is_what_a_slow_loop_makes():
    random = np.random.default_rng(0)
    latents = random.normal(size=(5, 3, 2, 4)).astype(np.float32)
    latents *= np.float32([1e-7, 1e-3, 1.0, 1e4])
    latents[2, :, :, 1] = 0
    stored, scale = format.round_latents(latents, "int8")
    slow_stored, slow_scale = slow_int8(latents)
    np.testing.assert_array_equal(scale, slow_scale)
    np.testing.assert_array_equal(stored, slow_stored)
    assert scale[2, 1] == 0
    assert np.abs(stored.astype(int)).max() <= 127
    restored = format.restore_latents(stored, scale)
    error = np.abs(restored - latents)
    assert (error <= scale.astype(np.float32)[:, None, None] / 2 * 1.001).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_are_rounded_to_the_nearest(dtype):
    latents = np.random.default_rng(0).normal(size=(50, 2, 2, 3)).astype(np.float32)
    stored, scale = format.round_latents(latents, dtype)
    assert scale is None
    restored = format.restore_latents(stored, None)
    assert restored.dtype == np.float32
    assert (np.abs(restored - latents) <= STEP[dtype] * np.abs(latents)).all()
    again, _ = format.round_latents(restored, dtype)
    np.testing.assert_array_equal(again, stored)


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504), ("int8", 65504 * 127)])
def test_numbers_too_large_become_infinite(dtype, largest):
    latents = np.full((1, 1, 1, 1), largest * 1.01, np.float32)
    rounded = format.restore_latents(*format.round_latents(latents, dtype))
    assert not np.isfinite(rounded).any()
    latents[:] = largest
    stored, scale = format.round_latents(latents, dtype)
    assert format.restore_latents(stored, scale)[0, 0, 0, 0] == largest


# --- records


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_record_is_what_tfds_itself_would_have_serialised(dtype):
    """Parsed by TFDS: the same values as the record TFDS makes, at the ends of every range."""
    layout = RecordLayout(latent_shape=(2, 3, 2), dtype=dtype)
    latents = np.random.default_rng(0).normal(size=(6, 2, 3, 2)).astype(np.float32)
    stored, scale = format.round_latents(latents, dtype)
    label = np.array([-1, 0, 127, 128, INT64.max, INT64.min])
    id = np.array([0, 1, 2**31, 2**32 + 5, 2**49 - 1, 300])
    copy = np.array([0, 1, 127, 128, 2**21 - 1, 5])
    psnr = np.float32([-3.5, 0, 20.25, 35.1, 100, 1e-3])
    records = layout.pack(stored=stored, scale=scale, label=label, id=id, copy=copy, psnr=psnr)
    stored_dtype = np.dtype(format.STORED_AS[dtype])
    spec = {
        "latents": tfds.features.Tensor(shape=(2, 3, 2), dtype=stored_dtype.type, encoding="bytes"),
        "label": tfds.features.Scalar(np.int64),
        "id": tfds.features.Scalar(np.int64),
        "copy": tfds.features.Scalar(np.int32),
        "psnr": tfds.features.Scalar(np.float32),
    }
    if scale is not None:
        spec["scale"] = tfds.features.Tensor(shape=(2,), dtype=np.float16, encoding="bytes")
    features = tfds.features.FeaturesDict(spec)
    unpacked = layout.unpack(records)
    for k, record in enumerate(records):
        values = {
            "latents": stored[k],
            "label": label[k],
            "id": id[k],
            "copy": copy[k],
            "psnr": psnr[k],
        }
        if scale is not None:
            values["scale"] = scale[k]
        own = features.deserialize_example_np(features.serialize_example(values))
        ours = features.deserialize_example_np(record)
        assert own.keys() == ours.keys()
        for name, value in own.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        for name in ("id", "copy", "psnr"):
            assert unpacked[name][k] == own[name]
    expected = format.restore_latents(stored, scale)
    np.testing.assert_array_equal(format.float32_latents(unpacked), expected)
    np.testing.assert_array_equal(unpacked["label"], label.astype(np.int32))
    dtypes = {name: values.dtype for name, values in unpacked.items()}
    as_stored = {"latents": np.dtype(dtype)} | ({"scale": np.float16} if dtype == "int8" else {})
    assert dtypes == as_stored | {
        "label": np.int32, "id": np.int64, "copy": np.int32,
        "psnr": np.float32,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "number"), [("id", -1), ("id", 2**49), ("copy", 2**21)])
def test_a_number_without_room_is_refused(name, number):
    layout = RecordLayout(latent_shape=(1, 1, 1), dtype="float32")
    values = {"label": np.array([0]), "id": np.array([0]), "copy": np.array([0])}
    values[name] = np.array([number])
    with pytest.raises(ValueError, match=f"{name} must be in .* not {number}"):
        layout.pack(stored=np.zeros((1, 1, 1, 1), np.float32), scale=None, psnr=[1], **values)


def test_a_foreign_record_is_refused():
    layout = RecordLayout(latent_shape=(1, 1, 2), dtype="float16")
    other = RecordLayout(latent_shape=(1, 2, 1), dtype="float16")  # of the same length
    stored = np.zeros((3, 1, 1, 2), np.float16)
    rest = {"scale": None, "label": [0] * 3, "id": [0] * 3, "copy": [0] * 3, "psnr": [0] * 3}
    records = layout.pack(stored=stored, **rest)
    assert other.record_bytes == layout.record_bytes
    changed = bytearray(records[1])
    changed[layout.fixed[10]] ^= 1
    with pytest.raises(ValueError, match="record 1 is not a record of this functaset"):
        layout.unpack([records[0], bytes(changed), records[2]])
    with pytest.raises(ValueError, match="record 2 has 10 bytes, not"):
        layout.unpack([records[0], records[1], records[2][:10]])


def test_65536_int8_latents_take_at_most_65_7_kb(tmp_path):
    """32x32x64, of 256x256 pixels: numbers and scales. Label, id, names and the like are 127 bytes more."""
    layout = RecordLayout(latent_shape=(32, 32, 64), dtype="int8")
    assert layout.latent_bytes == 32 * 32 * 64 + 64 * 2 == 65_664
    assert layout.record_bytes == 65_664 + 127
    assert functaset_writer.records_per_shard(200, layout) == 3039
    assert RecordLayout(latent_shape=(64, 64, 16), dtype="int8").record_bytes <= 65_700
    functaset_sets.write(
        tmp_path / "f", dtype="int8", latent_shape=(64, 64, 16),
        sizes={"train": 40, "validation": 0, "test": 1}, per_shard=100,
    )  # fmt: skip
    (shard,) = functaset.read_manifest(tmp_path / "f").splits["train"]["shards"]
    assert shard["bytes"] / shard["records"] <= 65_700  # normal latents: compressed


# --- reading


@pytest.mark.parametrize("dtype", DTYPES)
def test_tfds_reads_every_dtype(written, dtype):
    directory, splits = written[dtype]
    for split, expected in splits.items():
        source = tfds.builder_from_directory(directory).as_data_source(split)
        assert len(source) == len(expected["id"])
        for k in range(len(source)):
            record = source[k]
            stored, scale = format.round_latents(expected["latents"][k : k + 1], dtype)
            rounded = format.restore_latents(stored, scale)[0]
            np.testing.assert_array_equal(latents_of(record, dtype), rounded)
            for name in ("label", "id", "copy", "psnr"):
                assert record[name] == expected[name][k]


def test_a_program_without_jax_and_tensorflow_opens_bfloat16(written):
    """TFDS knows bfloat16 only where something else has imported it; the stored bits need nothing."""
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"record = tfds.builder_from_directory({str(written['bfloat16'][0])!r})"
        ".as_data_source('test')[3]\n"
        "assert not {'tensorflow', 'jax', 'ml_dtypes'} & set(sys.modules)\n"
        "print(record['latents'].dtype, record['latents'].shape, record['id'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "uint16 (2, 2, 3) 203\n"


@pytest.mark.parametrize("cache", ["host", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_read_gathers_any_records_in_the_order_asked(written, dtype, cache):
    directory, splits = written[dtype]
    source = functaset.open_functaset(directory, field_digest=functaset_sets.DIGEST).source(
        "train", cache
    )
    expected = splits["train"]
    assert source.num_examples == 45
    for indices in ([44, 0, 19, 20, 20, 21], list(range(45)), [7], []):
        indices = np.array(indices, np.int64)
        for reader in (source, pickle.loads(pickle.dumps(source))):
            records = reader.read(indices)
            rounded = format.restore_latents(
                *format.round_latents(expected["latents"][indices], dtype)
            ) if indices.size else np.zeros((0, 2, 2, 3))  # fmt: skip
            np.testing.assert_array_equal(format.float32_latents(records), rounded)
            for name in ("label", "id", "copy", "psnr"):
                np.testing.assert_array_equal(records[name], expected[name][indices])
            scale = {"scale": np.float16} if dtype == "int8" else {}
            assert {name: values.dtype for name, values in records.items()} == scale | {
                "latents": np.dtype(dtype), "label": np.int32, "id": np.int64, "copy": np.int32,
                "psnr": np.float32,
            }  # fmt: skip


@pytest.mark.parametrize("cache", ["host", "none"])
@pytest.mark.parametrize("index", [-1, 45])
def test_an_index_outside_is_refused(written, cache, index):
    source = functaset.open_functaset(written["float16"][0], field_digest=None).source(
        "train", cache
    )
    with pytest.raises(IndexError, match=r"not in \[0, 45\)"):
        source.read(np.array([3, index]))


def test_what_is_read_can_be_changed_without_harm(written):
    source = functaset.open_functaset(written["float16"][0], field_digest=None).source(
        "test", "host"
    )
    first = source.read(np.arange(5))
    first["latents"][:] = 0
    assert source.read(np.arange(5))["latents"].any()


def test_an_unknown_split_or_cache_is_refused(written):
    opened = functaset.open_functaset(written["float16"][0], field_digest=None)
    with pytest.raises(ValueError, match="no split 'dev'; there are train, validation, test"):
        opened.source("dev", cache="host")
    with pytest.raises(ValueError, match="cache must be host or none, not 'disk'"):
        opened.source("train", cache="disk")


# --- as_user_errors


def test_another_field_is_refused_naming_both(whole):
    directory, _ = whole
    other = "sha256:" + "f" * 64
    with pytest.raises(ValueError, match="encoded with the field") as caught:
        functaset.open_functaset(directory, field_digest=other)
    assert functaset_sets.DIGEST in str(caught.value)
    assert other in str(caught.value)
    functaset.open_functaset(directory, field_digest=functaset_sets.DIGEST)


def test_a_set_without_manifest_is_not_complete(whole):
    directory, _ = whole
    (directory / "manifest.json").unlink()
    with pytest.raises(ValueError, match="manifest.json does not exist: no complete functaset"):
        functaset.open_functaset(directory, field_digest=None)


def test_another_format_version_is_refused(whole):
    directory, manifest = whole
    rewrite(directory, manifest | {"format_version": 99})
    reads = format.FORMAT_VERSION
    with pytest.raises(ValueError, match=f"format version 99, this program reads {reads}"):
        functaset.open_functaset(directory, field_digest=None)


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', "\x00\xff"])
def test_a_damaged_manifest_is_refused(whole, text):
    directory, _ = whole
    (directory / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        functaset.open_functaset(directory, field_digest=None)


def test_a_changed_number_in_the_manifest_is_found(whole):
    directory, _ = whole
    file = directory / "manifest.json"
    text = file.read_text()
    assert text.count('"examples": 45') == 1
    file.write_text(text.replace('"examples": 45', '"examples": 44'))
    with pytest.raises(ValueError, match="manifest.json is damaged: its digest is sha256:"):
        functaset.open_functaset(directory, field_digest=None)


def test_a_missing_or_truncated_shard_is_refused(whole):
    directory, manifest = whole
    file = directory / manifest["splits"]["test"]["shards"][1]["file"]
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    with pytest.raises(ValueError, match=f"{file.name} has 1000 bytes, not {len(content)}"):
        functaset.open_functaset(directory, field_digest=None)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing"):
        functaset.open_functaset(directory, field_digest=None)
