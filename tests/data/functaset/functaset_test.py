"""functa.data.functaset.reader and the format and writer behind it: what TFDS sees, and what damage is found."""

import itertools
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import (
    format,
    verification,
)
from functa.data.functaset import (
    reader as functaset,
)
from functa.data.functaset import (
    writer as functaset_writer,
)
from functa.data.functaset.format import RecordLayout
from functa.runtime import digests
from tests.support import functaset_sets

DTYPES = tuple(format.STORAGE_DTYPES)


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
    manifest["digest"] = digests.json_digest(manifest | {"digest": ""})
    (directory / "manifest.json").write_text(json.dumps(manifest))


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


def test_an_estimate_is_never_too_small(written, tmp_path):
    """Random bits, which nothing compresses, and records longer than a block of the file."""
    counts = {(1, 1, 1): 2000, (64, 64, 16): 40}
    for (shape, count), kind in itertools.product(
        counts.items(), functaset_writer.COMPRESSIONS.values()
    ):
        layout = RecordLayout(latent_shape=shape, dtype="bfloat16")
        file = tmp_path / "shard"
        random = np.random.default_rng(0)
        writer = array_record_module.ArrayRecordWriter(str(file), f"group_size:1,{kind}")
        for _ in range(count):
            writer.write(random.bytes(layout.record_bytes))
        writer.close()
        shard = functaset_writer.Shard("train", 0, 1, 0, count)
        assert file.stat().st_size <= functaset_writer.estimated_bytes([shard], layout)


# --- verify


def test_an_undamaged_set_has_no_problems(written):
    for directory, _ in written.values():
        assert functaset_sets.problems(directory) == []
        assert functaset_sets.problems(directory, field_digest=functaset_sets.DIGEST) == []


def test_verify_finds_one_flipped_bit_in_any_file(whole):
    directory, _ = whole
    random = np.random.default_rng(0)
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    assert len(files) == 6 + 4
    for file in files:
        content = bytearray(file.read_bytes())
        position = int(random.integers(len(content)))
        content[position] ^= 1 << int(random.integers(8))
        before = file.read_bytes()
        file.write_bytes(content)
        problems = functaset_sets.problems(directory)
        file.write_bytes(before)
        assert len(problems) == 1, (file, position)
        assert str(file) in problems[0]
    assert functaset_sets.problems(directory) == []


def test_verify_finds_missing_truncated_and_foreign_files(whole):
    directory, manifest = whole
    shards = [directory / shard["file"] for shard in manifest["splits"]["train"]["shards"]]
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    foreign = directory / "functaset-train.array_record-00003-of-00004"
    foreign.write_bytes(shards[2].read_bytes())
    half = directory / f"{shards[0].name}.tmp"
    half.write_bytes(b"half")
    problems = functaset_sets.problems(directory, field_digest="sha256:other")
    assert len(problems) == 5
    for problem, words in zip(
        problems,
        (
            (functaset_sets.DIGEST, "sha256:other"),
            (str(shards[0]), "missing"),
            (str(shards[1]), "bytes, not"),
            (str(half), "not a shard of this set"),
            (str(foreign), "not a shard of this set"),
        ),
        strict=True,
    ):
        assert all(word in problem for word in words), problem


def replace_shard(directory, manifest, records):
    """Puts `records` in place of the first test shard, with a right size and digest."""
    shard = manifest["splits"]["test"]["shards"][0]
    file = directory / shard["file"]
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    shard["bytes"] = file.stat().st_size
    shard["sha256"] = format.file_digest(epath.Path(file))
    rewrite(directory, manifest)
    return file


def packed(latents, *, id=None):
    layout = RecordLayout(latent_shape=functaset_sets.LATENT_SHAPE, dtype="float16")
    n = len(latents)
    return layout.pack(
        stored=latents.astype(np.float16), scale=None, label=np.zeros(n, int),
        id=200 + np.arange(n) if id is None else id, copy=np.zeros(n, int), psnr=np.ones(n),
    )  # fmt: skip


def test_verify_finds_records_that_cannot_be_decoded(whole):
    directory, manifest = whole
    records = packed(np.zeros((20, *functaset_sets.LATENT_SHAPE)))
    file = replace_shard(directory, manifest, records)
    assert functaset_sets.problems(directory) == []
    replace_shard(directory, manifest, [*records[:11], b"no record", *records[12:]])
    (problem,) = functaset_sets.problems(directory)
    assert problem == f"{file}: record 11 cannot be decoded"
    replace_shard(directory, manifest, [*records[:12], *[b"no record"] * 8])
    problems = verification.verify(directory, field_digest=None, fraction=0.3).problems
    (number,) = re.findall(r"record (\d+) cannot be decoded", "; ".join(problems))
    assert int(number) >= 12  # in the shard, not among those that were looked at


def test_verify_counts_records(whole):
    directory, manifest = whole
    file = replace_shard(directory, manifest, packed(np.zeros((19, *functaset_sets.LATENT_SHAPE))))
    (problem,) = functaset_sets.problems(directory)
    assert problem == f"{file} has 19 records, not 20"
    manifest["splits"]["train"]["examples"] = 46
    rewrite(directory, manifest)
    problems = functaset_sets.problems(directory)
    assert problems[0].endswith("manifest.json: train has 46 examples, its shards 45")
    assert len(problems) == 2


def test_verify_looks_at_the_numbers(whole):
    directory, manifest = whole
    latents = np.zeros((20, *functaset_sets.LATENT_SHAPE))
    latents[6, 1, 1, 2] = np.inf
    file = replace_shard(directory, manifest, packed(latents))
    assert functaset_sets.problems(directory) == [f"{file}: record 6 (id 206) is not finite"]
    replace_shard(directory, manifest, packed(np.zeros_like(latents), id=np.arange(20)))
    (problem,) = functaset_sets.problems(directory)
    assert problem == f"{file}: ids 0 to 19, not in [200, 219]"


# --- verify a sample


def sampled(directory, fraction):
    return verification.verify(directory, field_digest=functaset_sets.DIGEST, fraction=fraction)


def test_a_sample_is_of_all_shards_and_the_same_every_time(tmp_path, monkeypatch):
    """100, 7 and 30 records in shards of 10: of each a fifth, a record of the one of 7 counted up."""
    directory = tmp_path / "f"
    functaset_sets.write(directory, sizes={"train": 100, "validation": 7, "test": 30}, per_shard=10)
    read, hashed = [], []
    unpack, digest = RecordLayout.unpack, format.file_digest

    def recording_unpack(self, records):
        rows = unpack(self, records)
        read.append(rows["id"].tolist())
        return rows

    def recording_digest(file):
        hashed.append(file.name)
        return digest(file)

    monkeypatch.setattr(RecordLayout, "unpack", recording_unpack)
    monkeypatch.setattr(format, "file_digest", recording_digest)
    found = sampled(directory, 0.2)
    assert found == ([], 14, 137, 3, 10 * 2 + 2 + 3 * 2)
    once = sorted(read), sorted(hashed)
    assert [len(ids) for ids in once[0]] == [2] * 14
    assert all(first // 5 + 1 == last // 5 for first, last in (sorted(ids) for ids in once[0][:10]))
    assert len([name for name in hashed if "array_record" in name]) == 3
    read.clear(), hashed.clear()
    assert sampled(directory, 0.2) == found
    assert (sorted(read), sorted(hashed)) == once
    assert sampled(directory, 1e-9)[1:] == (14, 137, 1, 14)  # at least one
    assert sampled(directory, 1.0)[1:] == (14, 137, 14, 137)
    for fraction in (0.0, 1.01):
        with pytest.raises(ValueError, match=f"a fraction of {fraction}"):
            sampled(directory, fraction)


def test_a_sample_finds_what_it_looks_at(whole):
    directory, manifest = whole
    latents = np.zeros((20, *functaset_sets.LATENT_SHAPE))
    latents[:, 1, 1, 2] = np.inf
    file = replace_shard(directory, manifest, packed(latents))
    (problem,) = sampled(directory, 0.01).problems
    assert re.fullmatch(rf"{file}: record \d+ \(id 2\d\d\) is not finite", problem)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    (problem,) = sampled(directory, 0.01).problems
    assert problem == f"{file} has {len(content) - 1} bytes, not {len(content)}"
    file.unlink()
    assert sampled(directory, 0.01).problems == [f"{file} is missing"]


def test_bytes_flipped_anywhere_in_a_shard_end_in_a_problem_or_in_nothing(whole):
    """A sample reads files whose digest nobody has compared: no damage may do worse than be told."""
    directory, manifest = whole
    random = np.random.default_rng(0)
    for shard in manifest["splits"]["train"]["shards"]:
        file = directory / shard["file"]
        content = file.read_bytes()
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = random.integers(len(content), size=200)
            damaged[places] ^= random.integers(1, 256, 200).astype(np.uint8)
            file.write_bytes(damaged.tobytes())
            found = verification._of_records(
                epath.Path(file),
                shard,
                RecordLayout(functaset_sets.LATENT_SHAPE, "float16"),
                np.arange(5),
            )
            assert all(str(file) in problem for problem in found)
        file.write_bytes(content)


# --- planning


def test_a_shard_has_so_many_megabytes_before_compression():
    layout = RecordLayout(latent_shape=functaset_sets.LATENT_SHAPE, dtype="float16")
    assert layout.record_bytes == 122
    for megabytes, records in (
        (200.0, 1_639_344),
        (0.05, 409),
        (functaset_sets.megabytes(20), 20),
        (1e-9, 1),
    ):
        assert functaset_writer.records_per_shard(megabytes, layout) == records


@pytest.mark.parametrize("compression", functaset_writer.COMPRESSIONS)
def test_compression_changes_the_files_and_nothing_that_is_read(tmp_path, compression):
    directory = tmp_path / "f"
    records = functaset_sets.write(directory, latent_shape=(8, 8, 16), compression=compression)
    assert functaset_sets.problems(directory) == []
    (shard, *_) = functaset.read_manifest(directory).shards
    reader = array_record_module.ArrayRecordReader(str(directory / shard["file"]))
    assert functaset_writer.COMPRESSIONS[compression] in reader.writer_options_string()
    source = tfds.builder_from_directory(directory).as_data_source("test")
    stored = records["test"]["latents"].astype(np.float16)
    for k in (0, 29):
        np.testing.assert_array_equal(source[k]["latents"], stored[k])


def test_shards_are_contiguous_and_complete():
    shards = functaset_writer.plan_shards({"train": 41, "validation": 0, "test": 20}, 20)
    assert [(s.split, s.index, s.num_shards, s.start, s.stop) for s in shards] == [
        ("train", 0, 3, 0, 20),
        ("train", 1, 3, 20, 40),
        ("train", 2, 3, 40, 41),
        ("test", 0, 1, 0, 20),
    ]
    assert shards[2].file == "functaset-train.array_record-00002-of-00003"


def test_a_shard_without_all_its_records_is_not_finished(tmp_path):
    recipe = functaset_writer.Recipe(
        field_digest="", config={}, layout=RecordLayout((2, 2, 3), "float16"), class_names=(),
        compression="zstd", num_records={"train": 3, "validation": 0, "test": 0},
    )  # fmt: skip
    (shard,) = functaset_writer.plan_shards(recipe.num_records, 10)
    with functaset_writer.ShardWriter(tmp_path, shard=shard, recipe=recipe) as writer:
        writer.write(**functaset_sets.make_records(2, (2, 2, 3), seed=0))
        with pytest.raises(ValueError, match="2 records written, 3 planned"):
            writer.finish(seconds=0.0)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_labels_without_classes_are_plain_numbers(tmp_path):
    directory = tmp_path / "f"
    sizes = {"train": 3, "validation": 0, "test": 1}
    recipe = functaset_writer.Recipe(
        field_digest="", config={}, layout=RecordLayout((2, 2, 3), "float16"), class_names=(),
        compression="zstd", num_records=sizes,
    )  # fmt: skip
    directory.mkdir()
    shards = functaset_writer.plan_shards(sizes, 10)
    from functa.data.functaset import manifest as functaset_manifest

    for shard in shards:
        with functaset_writer.ShardWriter(directory, shard=shard, recipe=recipe) as writer:
            records = functaset_sets.make_records(shard.records, (2, 2, 3), seed=0)
            writer.write(**records | {"label": np.full(shard.records, -1)})
            writer.finish(seconds=0.0)
    functaset_manifest.write_manifest(directory, shards=shards, recipe=recipe)
    builder = tfds.builder_from_directory(directory)
    assert not isinstance(builder.info.features["label"], tfds.features.ClassLabel)
    assert [record["label"] for record in builder.as_data_source("train")] == [-1] * 3
