import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from functa.data.functaset import format, reader
from functa.runtime import digests
from functa.runtime.errors import DamagedFileError
from tests.support import functaset_sets

DTYPES = tuple(format.STORAGE_DTYPES)


@pytest.fixture(scope="module")
def functasets(tmp_path_factory):
    """{dtype: (directory, records by split)}. Tests leave them unchanged."""
    root = tmp_path_factory.mktemp("functasets")
    return {
        dtype: (root / dtype, functaset_sets.write(root / dtype, dtype=dtype)) for dtype in DTYPES
    }


@pytest.fixture
def functaset(tmp_path):
    """(directory, manifest as a dict) of a functaset to damage."""
    directory = tmp_path / "functaset"
    functaset_sets.write(directory)
    return directory, json.loads((directory / "manifest.json").read_text())


def open_source(functasets, dtype, split):
    return reader.open_functaset(functasets[dtype][0], field_digest=None).source(split)


def documented_latents(record, dtype):
    """Latents as the docstring of the reader tells other programs to compute them."""
    if dtype == "bfloat16":
        return record["latents"].view(ml_dtypes.bfloat16).astype(np.float32)
    if dtype == "int8":
        return record["latents"] * record["scale"].astype(np.float32)
    return record["latents"].astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tfds_reads_every_dtype(functasets, dtype):
    directory, splits = functasets[dtype]
    for split, expected in splits.items():
        source = tfds.builder_from_directory(directory).as_data_source(split)
        assert len(source) == len(expected["id"])
        latents = format.dequantize(*format.quantize(expected["latents"], dtype))
        for k in range(len(source)):
            record = source[k]
            np.testing.assert_array_equal(documented_latents(record, dtype), latents[k])
            for name in ("label", "id", "copy", "psnr"):
                assert record[name] == expected[name][k]


def test_other_programs_read_bfloat16_without_jax_and_tensorflow(functasets):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"record = tfds.builder_from_directory({str(functasets['bfloat16'][0])!r})"
        ".as_data_source('test')[3]\n"
        "assert not {'tensorflow', 'jax', 'ml_dtypes'} & set(sys.modules)\n"
        "print(record['latents'].dtype, record['latents'].shape, record['id'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "uint16 (2, 2, 3) 203\n"


@pytest.mark.parametrize("dtype", DTYPES)
def test_read_returns_the_requested_records_in_order(functasets, dtype):
    expected = functasets[dtype][1]["train"]
    source = open_source(functasets, dtype, "train")
    assert source.num_examples == 45
    latents = format.dequantize(*format.quantize(expected["latents"], dtype))
    for indices in ([44, 0, 19, 20, 20, 21], list(range(45)), [7], []):
        indices = np.array(indices, np.int64)
        batch = source.read(indices)
        np.testing.assert_array_equal(format.float32_latents(batch), latents[indices])
        for name in ("label", "id", "copy", "psnr"):
            np.testing.assert_array_equal(batch[name], expected[name][indices])
        assert batch["latents"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("index", [-1, 45])
def test_indices_outside_the_split_are_refused(functasets, index):
    with pytest.raises(IndexError, match="45"):
        open_source(functasets, "float16", "train").read(np.array([3, index]))


def test_unknown_splits_are_refused(functasets):
    with pytest.raises(ValueError, match="'dev'.* train, validation, test"):
        open_source(functasets, "float16", "dev")


def test_damaged_records_name_their_shard(functaset):
    """The second and third shard of three are damaged."""
    directory, manifest = functaset
    source = reader.open_functaset(directory, field_digest=None).source("train")
    names = [shard["file"] for shard in manifest["splits"]["train"]["shards"]]
    for name in names[1:]:
        content = (directory / name).read_bytes()
        half = len(content) // 2
        (directory / name).write_bytes(bytes(half) + content[half:])
    for index, shard in ((20, 1), (39, 1), (40, 2)):
        with pytest.raises(DamagedFileError) as error:
            source.read(np.array([index]))
        assert [name in str(error.value) for name in names] == [k == shard for k in range(3)]
    assert source.read(np.arange(20))["id"].tolist() == list(range(20))


def test_field_problem_is_refused_and_both_are_named(functasets):
    directory, _ = functasets["float16"]
    other = "sha256:" + "f" * 64
    with pytest.raises(ValueError, match=f"{functaset_sets.DIGEST}.*{other}"):
        reader.open_functaset(directory, field_digest=other)
    reader.open_functaset(directory, field_digest=functaset_sets.DIGEST)


def rewrite(**changes):
    """Changes values of a manifest and its digest."""

    def change(text):
        manifest = json.loads(text) | changes | {"digest": ""}
        return json.dumps(manifest | {"digest": digests.json_digest(manifest)})

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: "", "manifest.json"),
        (lambda text: "[]", "manifest.json"),
        (lambda text: '{"format_version": 1}', "manifest.json"),
        (lambda text: "\x00\xff", "manifest.json"),
        (lambda text: text.replace('"examples": 45', '"examples": 44'), "digest"),
        (rewrite(format_version=99), f"version 99.* {format.FORMAT_VERSION}"),
    ],
)
def test_a_damaged_manifest_is_refused(functaset, change, part):
    file = functaset[0] / "manifest.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=part):
        reader.open_functaset(functaset[0], field_digest=None)
    file.unlink()
    with pytest.raises(ValueError, match="manifest.json"):
        reader.open_functaset(functaset[0], field_digest=None)


def test_missing_and_truncated_shards_are_refused(functaset):
    directory, manifest = functaset
    file = directory / manifest["splits"]["test"]["shards"][1]["file"]
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file.name} .*1000 .*{size}"):
        reader.open_functaset(directory, field_digest=None)
    file.unlink()
    with pytest.raises(ValueError, match=file.name):
        reader.open_functaset(directory, field_digest=None)
