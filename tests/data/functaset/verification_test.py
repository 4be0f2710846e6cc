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
    directory, _ = functaset
    (directory / "manifest.json").unlink()
    (problem,) = problems(directory)
    assert "manifest.json" in problem


def test_undecodable_records_are_found(functaset):
    directory, manifest = functaset
    records = pack(np.zeros((20, *LATENT_SHAPE)))
    file = replace_shard(directory, manifest, records)
    assert problems(directory) == []
    replace_shard(directory, manifest, [*records[:11], b"no record", *records[12:]])
    (problem,) = problems(directory)
    assert problem.startswith(f"{file}: record 11 ")
    # A sample numbers records by their place in the shard, not in the sample.
    replace_shard(directory, manifest, [*records[:12], *[b"no record"] * 8])
    found = verification.verify(directory, field_digest=None, fraction=0.3).problems
    (number,) = re.findall(r": record (\d+) ", "; ".join(found))
    assert int(number) >= 12


def test_wrong_counts_are_found(functaset):
    directory, manifest = functaset
    file = replace_shard(directory, manifest, pack(np.zeros((19, *LATENT_SHAPE))))
    (problem,) = problems(directory)
    assert problem == f"{file} has 19 records, not 20"
    manifest["splits"]["train"]["examples"] = 46
    rewrite(directory, manifest)
    in_manifest, _ = problems(directory)
    assert "train has 46 examples" in in_manifest


@pytest.mark.parametrize(("latent", "psnr"), [(np.inf, 1.0), (0.0, np.nan)])
def test_numbers_that_are_not_finite_are_found(functaset, latent, psnr):
    directory, manifest = functaset
    latents = np.zeros((20, *LATENT_SHAPE))
    latents[6, 1, 1, 2] = latent
    records = pack(latents)
    records[6] = pack(latents[6:7], first_id=206, psnr=psnr)[0]
    file = replace_shard(directory, manifest, records)
    (problem,) = problems(directory)
    assert problem.startswith(f"{file}: record 6 (id 206)")


@pytest.mark.parametrize(("first_id", "count"), [(0, 0), (199, 0), (201, 0), (200, 1)])
def test_ids_outside_the_range_of_the_shard_are_found(functaset, first_id, count):
    directory, manifest = functaset
    replace_shard(directory, manifest, pack(np.zeros((20, *LATENT_SHAPE)), first_id=first_id))
    assert len(problems(directory)) == 1 - count


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
    latents = np.zeros((20, *LATENT_SHAPE))
    latents[:, 1, 1, 2] = np.inf
    file = replace_shard(directory, manifest, pack(latents))
    (problem,) = verify_sample(directory, 0.01).problems
    assert re.match(rf"{file}: record \d+ \(id 2\d\d\)", problem)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    (problem,) = verify_sample(directory, 0.01).problems
    assert problem == f"{file} has {len(content) - 1} bytes, not {len(content)}"
    file.unlink()
    assert verify_sample(directory, 0.01).problems == [f"{file} is missing"]


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
