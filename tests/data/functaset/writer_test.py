"""functa.data.functaset.writer and manifest: shards, statistics and metadata of a functaset."""

import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from functa.data.functaset import format, manifest, reader, writer
from functa.data.functaset.format import RecordLayout
from tests.support import functaset_sets
from tests.support.functaset_sets import LATENT_SHAPE


def make_spec(**changes):
    values = {
        "field_digest": "",
        "config": {},
        "layout": RecordLayout(LATENT_SHAPE, "float16"),
        "compression": "zstd",
        "class_names": (),
        "num_records": {"train": 3, "validation": 0, "test": 1},
        "records_per_shard": 10,
    }
    return writer.FunctasetSpec(**(values | changes))


# sha256 of all records of functaset_sets.write: functasets of earlier versions stay identical.
RECORDS = {
    "float16": "76fffd977ddc54fa",
    "bfloat16": "18b4cf3348090f70",
    "float32": "78124e1eef72c0be",
    "int8": "1a419eaa3a7e7118",
}


@pytest.mark.parametrize("dtype", RECORDS)
def test_bytes_of_the_records(tmp_path, dtype):
    functaset_sets.write(tmp_path / "f", dtype=dtype)
    sha256 = hashlib.sha256()
    for shard in reader.read_manifest(tmp_path / "f").shards:
        shard_reader = array_record_module.ArrayRecordReader(str(tmp_path / "f" / shard["file"]))
        for record in shard_reader.read_all():
            sha256.update(record)
    assert sha256.hexdigest()[:16] == RECORDS[dtype]


def test_statistics_are_those_of_the_stored_latents(tmp_path):
    """Against a slow reference; they are rounded to int8, and PSNR is not."""
    splits = functaset_sets.write(tmp_path / "f", dtype="int8")
    stored = reader.read_manifest(tmp_path / "f")
    latents = splits["train"]["latents"]
    values = format.dequantize(*format.quantize(latents, "int8")).astype(np.float64)
    np.testing.assert_allclose(stored.mean, values.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(stored.std, values.std((0, 1, 2)), rtol=1e-9)
    assert stored.scalar_mean == pytest.approx(values.mean(), rel=1e-9)
    assert stored.scalar_std == pytest.approx(values.std(), rel=1e-9)
    for split, records in splits.items():
        psnr = records["psnr"].astype(np.float64)
        entry = stored.splits[split]
        assert entry["psnr"] == pytest.approx(psnr.mean(), rel=1e-12)
        mean_mse = np.mean(10 ** (-psnr / 10))
        assert entry["psnr_of_mean_mse"] == pytest.approx(-10 * np.log10(mean_mse), rel=1e-9)
        for shard, start in zip(entry["shards"], range(0, len(psnr), 20), strict=True):
            ids = records["id"][start : start + 20]
            assert shard["ids"] == [ids.min(), ids.max()]


def test_statistics_do_not_depend_on_the_blocks_that_are_written(tmp_path, monkeypatch):
    contents = []
    for numbers in (12, 60, 1 << 21):  # 1, 5 and all records at once
        monkeypatch.setattr(writer, "_BLOCK_NUMBERS", numbers)
        functaset_sets.write(tmp_path / str(numbers))
        contents.append(functaset_sets.contents(tmp_path / str(numbers)))
    assert contents[0] == contents[1] == contents[2]


def test_size_of_a_shard_before_compression():
    layout = RecordLayout(latent_shape=LATENT_SHAPE, dtype="float16")
    assert layout.record_bytes == 122
    for megabytes, records in (
        (200.0, 1_639_344),
        (0.05, 409),
        (functaset_sets.megabytes(20), 20),
        (1e-9, 1),
    ):
        assert writer.records_per_shard(megabytes, layout) == records


@pytest.mark.parametrize("compression", writer.COMPRESSIONS)
def test_compression_changes_no_value(tmp_path, compression):
    directory = tmp_path / "f"
    records = functaset_sets.write(directory, latent_shape=(8, 8, 16), compression=compression)
    assert functaset_sets.problems(directory) == []
    (shard, *_) = reader.read_manifest(directory).shards
    options = array_record_module.ArrayRecordReader(str(directory / shard["file"]))
    assert writer.COMPRESSIONS[compression] in options.writer_options_string()
    source = tfds.builder_from_directory(directory).as_data_source("test")
    stored = records["test"]["latents"].astype(np.float16)
    for k in (0, 29):
        np.testing.assert_array_equal(source[k]["latents"], stored[k])


def test_shards_are_planned_by_split():
    spec = make_spec(num_records={"train": 41, "validation": 0, "test": 20}, records_per_shard=20)
    assert [(shard.split, shard.start, shard.stop) for shard in spec.shards] == [
        ("train", 0, 20),
        ("train", 20, 40),
        ("train", 40, 41),
        ("test", 0, 20),
    ]
    assert spec.shards[2].file == "functaset-train.array_record-00002-of-00003"


def test_the_digest_of_a_spec_depends_on_every_value():
    changes = [
        {},
        {"field_digest": "sha256:1"},
        {"config": {"seed": 1}},
        {"layout": RecordLayout(LATENT_SHAPE, "int8")},
        {"compression": "none"},
        {"class_names": ("cat",)},
        {"num_records": {"train": 4, "validation": 0, "test": 1}},
        {"records_per_shard": 11},
    ]
    digests = {writer.sharded_set("d", make_spec(**change)).spec_digest for change in changes}
    assert len(digests) == len(changes)


def test_an_incomplete_shard_is_not_finished(tmp_path):
    spec = make_spec()
    with writer.LatentShardWriter(tmp_path, shard=spec.shards[0], spec=spec) as shard_writer:
        shard_writer.write(**functaset_sets.make_records(2, LATENT_SHAPE, seed=0))
        assert shard_writer.num_records == 2
        with pytest.raises(ValueError, match="2 records written, 3 planned"):
            shard_writer.finish(seconds=0.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=f"2 shards are not finished, first {spec.shards[0].file}"):
        manifest.write_manifest(tmp_path, spec)


def test_labels_without_class_names_are_integers(tmp_path):
    spec = make_spec()
    for shard in spec.shards:
        with writer.LatentShardWriter(tmp_path, shard=shard, spec=spec) as shard_writer:
            records = functaset_sets.make_records(shard.num_records, LATENT_SHAPE, seed=0)
            shard_writer.write(**records | {"label": np.full(shard.num_records, -1)})
            shard_writer.finish(seconds=0.0)
    manifest.write_manifest(tmp_path, spec)
    builder = tfds.builder_from_directory(tmp_path)
    assert not isinstance(builder.info.features["label"], tfds.features.ClassLabel)
    assert [record["label"] for record in builder.as_data_source("train")] == [-1] * 3
