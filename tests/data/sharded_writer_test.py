"""functa.data.sharded_writer: shards appear complete or not at all, and finished ones are known."""

import errno
import itertools
import pathlib
import types

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from functa.data import sharded_writer
from functa.data.functaset import writer
from functa.data.sharded_writer import ShardedSet, ShardWriter

RECORDS = [bytes([k]) * (k + 1) for k in range(5)]


def make_set(directory, *, spec_digest="sha256:0", options="group_size:1"):
    directory = epath.Path(directory)
    shards = sharded_writer.plan_shards(
        "name", "train", num_records=5, records_per_shard=2, record_bytes=10
    )
    return ShardedSet(directory, directory / "summaries", shards, spec_digest, options)


def write(sharded_set, shards=None):
    for shard in shards or sharded_set.shards:
        with ShardWriter(sharded_set, shard) as shard_writer:
            shard_writer.append(RECORDS[shard.start : shard.stop])
            shard_writer.commit({"number": shard.start})


def files(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_shards_are_contiguous_and_named_for_tfds():
    shards = make_set("d").shards
    assert [(shard.start, shard.stop, shard.num_records) for shard in shards] == [
        (0, 2, 2),
        (2, 4, 2),
        (4, 5, 1),
    ]
    assert shards[2].file == "name-train.array_record-00002-of-00003"
    plan = {"num_records": 0, "records_per_shard": 2, "record_bytes": 10}
    assert sharded_writer.plan_shards("name", "train", **plan) == []


def test_max_bytes_is_an_upper_bound(tmp_path):
    """Random bytes, which nothing compresses, and records longer than a block of the file."""
    random = np.random.default_rng(0)
    sizes = {100: 2000, 140_000: 40}
    for (size, count), compression in itertools.product(
        sizes.items(), writer.COMPRESSIONS.values()
    ):
        options = f"group_size:1,{compression}"
        plan = {"num_records": count, "records_per_shard": count, "record_bytes": size}
        (shard,) = sharded_writer.plan_shards("name", "train", **plan)
        target = make_set(tmp_path, options=options)._replace(shards=[shard])
        with ShardWriter(target, shard) as shard_writer:
            shard_writer.append(random.bytes(size) for _ in range(count))
            summary = shard_writer.commit({})
        assert count * size < summary["shard"]["bytes"] <= shard.max_bytes


@pytest.fixture(params=[False, True])
def remote(request, tmp_path, monkeypatch):
    """Shards for an object store are written to a local folder and copied."""
    (tmp_path / "set").mkdir()
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(sharded_writer.tempfile, "tempdir", str(tmp_path / "spool"))
    monkeypatch.setattr(sharded_writer.storage, "is_remote", lambda path: request.param)
    return request.param


def test_a_finished_shard_and_its_summary(tmp_path, remote):
    target = make_set(tmp_path / "set")
    shard = target.shards[1]
    with ShardWriter(target, shard) as shard_writer:
        shard_writer.append(RECORDS[2:3])
        shard_writer.append(RECORDS[3:4])
        assert shard_writer.num_records == 2
        spooled = list((tmp_path / "spool").rglob("*.tmp"))
        assert len(spooled) == remote
        summary = shard_writer.commit({"number": 7})
    assert files(tmp_path) == [shard.file, f"{shard.file}.json"]
    assert list((tmp_path / "spool").iterdir()) == []
    reader = array_record_module.ArrayRecordReader(str(target.directory / shard.file))
    assert reader.read_all() == RECORDS[2:4]
    assert summary["shard"]["records"] == 2
    assert summary["shard"]["bytes"] == (target.directory / shard.file).stat().length
    assert summary["number"] == 7
    assert target.finished(target.shards, compare_digests=True) == {shard: summary}


def test_an_unfinished_shard_leaves_nothing(tmp_path, monkeypatch, remote):
    target = make_set(tmp_path / "set")
    with pytest.raises(KeyError), ShardWriter(target, target.shards[0]) as shard_writer:  # noqa: PT012
        shard_writer.append(RECORDS[:2])
        raise KeyError
    assert files(tmp_path) == []

    def fail(path, value):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sharded_writer.config, "write_json", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(target)
    assert target.finished(target.shards) == {}
    assert files(tmp_path) == [target.shards[0].file]


def test_a_shard_that_is_written_again_has_no_summary_of_the_old_one(tmp_path, monkeypatch):
    target = make_set(tmp_path)
    write(target)
    monkeypatch.setattr(sharded_writer.config, "write_json", lambda path, value: None)
    write(target, [target.shards[0]])
    assert list(target.finished(target.shards)) == target.shards[1:]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def set_other_spec(file):
    file.write_text(file.read_text().replace("sha256:0", "sha256:1"))


@pytest.mark.parametrize(
    ("folder", "suffix", "damage"),
    [
        ("", "", pathlib.Path.unlink),
        ("", "", truncate),
        ("summaries", ".json", pathlib.Path.unlink),
        ("summaries", ".json", truncate),
        ("summaries", ".json", lambda file: file.write_text("[]")),
        ("summaries", ".json", set_other_spec),
    ],
)
def test_a_damaged_or_foreign_shard_is_not_finished(tmp_path, folder, suffix, damage):
    target = make_set(tmp_path)
    assert target.finished(target.shards) == {}
    write(target)
    complete = target.finished(target.shards)
    assert list(complete) == target.shards
    shard = target.shards[1]
    damage(tmp_path / folder / f"{shard.file}{suffix}")
    del complete[shard]
    assert target.finished(target.shards) == complete


def test_changed_bytes_are_found_by_the_digest(tmp_path):
    target = make_set(tmp_path)
    write(target)
    file = tmp_path / target.shards[0].file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert len(target.finished(target.shards)) == 3
    assert list(target.finished(target.shards, compare_digests=True)) == target.shards[1:]


def test_too_little_space_is_an_error_with_both_numbers(tmp_path, monkeypatch):
    target = make_set(tmp_path)
    needed = sum(shard.max_bytes for shard in target.shards)
    usage = types.SimpleNamespace(free=needed)
    monkeypatch.setattr(sharded_writer.shutil, "disk_usage", lambda path: usage)
    target.require_space(target.shards)
    usage.free = needed - 1
    with pytest.raises(OSError, match=f"{needed:,} bytes, but only {needed - 1:,}") as error:
        target.require_space(target.shards)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path))
    target.require_space(target.shards[1:])
    # One shard at a time is spooled for an object store.
    monkeypatch.setattr(sharded_writer.storage, "is_remote", lambda path: True)
    usage.free = max(shard.max_bytes for shard in target.shards)
    target.require_space(target.shards)
    usage.free -= 1
    with pytest.raises(OSError, match="1 shards"):
        target.require_space(target.shards)


def test_a_full_disk_is_named_and_other_errors_pass(tmp_path, monkeypatch):
    class FullDisk(array_record_module.ArrayRecordWriter):
        message = "write() failed: No space left on device"

        def write(self, record):
            raise RuntimeError(self.message)

    monkeypatch.setattr(sharded_writer.array_record_module, "ArrayRecordWriter", FullDisk)
    target = make_set(tmp_path)
    with pytest.raises(OSError, match=f"{target.shards[0].max_bytes:,} bytes") as error:
        write(target)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / target.shards[0].file)
    FullDisk.message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        write(target)
    assert list(tmp_path.iterdir()) == []
