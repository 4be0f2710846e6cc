"""functa.data.functaset.verification: what it finds, all of a functaset and a sample."""

import json
import re

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format, verification
from functa.data.functaset.format import RecordLayout
from functa.runtime import digests
from tests.support import functaset_sets
from tests.support.functaset_sets import DIGEST, LATENT_SHAPE, problems


@pytest.fixture
def functaset(tmp_path):
    """(directory, manifest as a dict) of a functaset to damage."""
    directory = tmp_path / "functaset"
    functaset_sets.write(directory)
    return directory, json.loads((directory / "manifest.json").read_text())


def rewrite(directory, manifest):
    """Writes a changed manifest with its correct digest."""
    manifest["digest"] = digests.json_digest(manifest | {"digest": ""})
    (directory / "manifest.json").write_text(json.dumps(manifest))


def replace_shard(directory, manifest, records):
    """Replaces the first test shard; the manifest has its size and digest."""
    shard = manifest["splits"]["test"]["shards"][0]
    file = directory / shard["file"]
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    shard["bytes"] = file.stat().st_size
    shard["sha256"] = digests.file_digest(epath.Path(file))
    rewrite(directory, manifest)
    return file


def pack(latents, *, first_id=200, psnr=1.0):
    layout = RecordLayout(latent_shape=LATENT_SHAPE, dtype="float16")
    n = len(latents)
    return layout.pack(
        stored=latents.astype(np.float16), scale=None, label=np.zeros(n, int),
        id=first_id + np.arange(n), copy=np.zeros(n, int), psnr=np.full(n, psnr),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", format.STORAGE_DTYPES)
def test_an_undamaged_set_has_no_problems(tmp_path, dtype):
    functaset_sets.write(tmp_path / "f", dtype=dtype)
    assert problems(tmp_path / "f") == []
    assert problems(tmp_path / "f", field_digest=DIGEST) == []


def test_one_changed_bit_in_any_file_is_found(functaset):
    directory, _ = functaset
    random = np.random.default_rng(0)
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    assert len(files) == 6 + 4
    for file in files:
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        (problem,) = problems(directory)
        assert str(file) in problem
        file.write_bytes(content)
    assert problems(directory) == []


def test_missing_truncated_and_foreign_files_are_found(functaset):
    directory, manifest = functaset
    shards = [directory / shard["file"] for shard in manifest["splits"]["train"]["shards"]]
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    foreign = directory / "functaset-train.array_record-00003-of-00004"
    foreign.write_bytes(shards[2].read_bytes())
    unfinished = directory / f"{shards[0].name}.tmp"
    unfinished.write_bytes(b"half")
    found = problems(directory, field_digest="sha256:other")
    assert "sha256:other" in found[0]
    files = [shards[0], shards[1], unfinished, foreign]
    assert [str(file) in problem for file, problem in zip(files, found[1:], strict=True)] == [
        True
    ] * 4


def test_a_set_without_manifest_has_a_problem(functaset):
    (functaset[0] / "manifest.json").unlink()
    (problem,) = problems(functaset[0])
    assert "manifest.json" in problem


ZEROS = np.zeros((20, *LATENT_SHAPE))
ROWS = pack(ZEROS)
INFINITE = ZEROS + np.where(np.arange(20) == 6, np.inf, 0).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("records", "part"),
    [
        ([*ROWS[:11], b"no record", *ROWS[12:]], "record 11 "),
        (ROWS[:19], "19 records, not 20"),
        (pack(INFINITE), "record 6 (id 206)"),
        ([*ROWS[:6], *pack(ZEROS[:1], first_id=206, psnr=np.nan), *ROWS[7:]], "record 6 (id 206)"),
        (pack(ZEROS, first_id=0), "ids 0 to 19"),
        (pack(ZEROS, first_id=199), "ids 199 to 218"),
        (pack(ZEROS, first_id=201), "ids 201 to 220"),
    ],
)
def test_wrong_records_are_found(functaset, records, part):
    directory, manifest = functaset
    replace_shard(directory, manifest, ROWS)
    assert problems(directory) == []
    file = replace_shard(directory, manifest, records)
    (problem,) = problems(directory)
    assert str(file) in problem
    assert part in problem


def test_a_wrong_count_in_the_manifest_is_found(functaset):
    directory, manifest = functaset
    manifest["splits"]["train"]["examples"] = 46
    rewrite(directory, manifest)
    (problem,) = problems(directory)
    assert "train has 46 examples" in problem


# --- Samples


def verify_sample(directory, fraction):
    return verification.verify(directory, field_digest=DIGEST, fraction=fraction)


def test_a_sample_covers_all_shards_and_never_changes(tmp_path, monkeypatch):
    """100, 7 and 30 records in shards of 10; a fifth of each shard, rounded up."""
    directory = tmp_path / "f"
    functaset_sets.write(directory, sizes={"train": 100, "validation": 7, "test": 30}, per_shard=10)
    decoded, hashed = [], []
    unpack, digest = RecordLayout.unpack, digests.file_digest

    def recording_unpack(self, records):
        rows = unpack(self, records)
        decoded.append(rows["id"].tolist())
        return rows

    def recording_digest(file):
        hashed.append(file.name)
        return digest(file)

    monkeypatch.setattr(RecordLayout, "unpack", recording_unpack)
    monkeypatch.setattr(digests, "file_digest", recording_digest)
    result = verify_sample(directory, 0.2)
    assert result == ([], 14, 137, 3, 10 * 2 + 2 + 3 * 2)
    first = sorted(decoded), sorted(hashed)
    assert [len(ids) for ids in first[0]] == [2] * 14
    # One of each half of a shard.
    assert all(a // 5 + 1 == b // 5 for a, b in (sorted(ids) for ids in first[0][:10]))
    assert len([name for name in hashed if "array_record" in name]) == 3
    decoded.clear(), hashed.clear()
    assert verify_sample(directory, 0.2) == result
    assert (sorted(decoded), sorted(hashed)) == first
    assert verify_sample(directory, 1e-9)[1:] == (14, 137, 1, 14)  # at least one
    assert verify_sample(directory, 1.0)[1:] == (14, 137, 14, 137)


def test_damage_in_the_sample_is_found(functaset):
    directory, manifest = functaset
    file = replace_shard(directory, manifest, pack(ZEROS + np.inf))
    (problem,) = verify_sample(directory, 0.01).problems
    assert re.match(rf"{file}: record \d+ \(id 2\d\d\)", problem)
    # A sample numbers records by their place in the shard, not in the sample.
    replace_shard(directory, manifest, [*ROWS[:12], *[b"no record"] * 8])
    (problem,) = verify_sample(directory, 0.3).problems
    (number,) = re.findall(r": record (\d+) ", problem)
    assert int(number) >= 12
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = verify_sample(directory, 0.01).problems
    assert f"{file} has " in problem
    file.unlink()
    (problem,) = verify_sample(directory, 0.01).problems
    assert f"{file} is missing" in problem


def test_no_damage_of_a_shard_raises(functaset):
    """A sample reads files whose digest was not compared."""
    directory, manifest = functaset
    random = np.random.default_rng(0)
    layout = RecordLayout(LATENT_SHAPE, "float16")
    for shard in manifest["splits"]["train"]["shards"]:
        file = directory / shard["file"]
        content = file.read_bytes()
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[random.integers(len(content), size=200)] ^= random.integers(1, 256, 200).astype(
                np.uint8
            )
            file.write_bytes(damaged.tobytes())
            sample = np.arange(5)
            problem = verification._record_problem(epath.Path(file), shard, layout, sample)
            assert problem is None or str(file) in problem
        file.write_bytes(content)
