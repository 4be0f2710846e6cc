"""`functa prepare` after kills, full disks and interruptions: it resumes to the same bytes."""

import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from functa.data import image_records, sharded_writer
from functa.data.prepare import writer
from functa.runtime import storage
from functa.runtime.errors import DataError
from tests.support import image_sources
from tests.support.image_sources import encode, prepare, write_folder

# Kills itself when a function is called for the n-th time.
PROGRAM = """
import importlib, itertools, os, signal, sys
from functa.cli import main
from functa.data.prepare import writer

module, names, count, shard_bytes, *words = sys.argv[1:]
owner, calls = importlib.import_module(module), itertools.count(1)
*parents, name = names.split(".")
for parent in parents:
    owner = getattr(owner, parent)
function = getattr(owner, name)

def kill(*args, **kwargs):
    if next(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(owner, name, kill)
writer._SHARD_BYTES = int(shard_bytes)
sys.exit(main.main(words))
"""
FRACTION = ["--test-fraction=0.25", "--min-side=4"]


def run_killed(env, out, arguments, *, function, count, shard_bytes):
    """Runs `functa prepare` until the count-th call of a function kills it."""
    module, _, name = function.partition(":")
    words = [module, name, count, shard_bytes, "prepare", "small", *arguments, f"--data-dir={out}"]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=env,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL
    assert sorted(os.listdir(out / "small")) == ["1.0.0.lock", "1.0.0.unfinished"]
    return out / "small" / "1.0.0.unfinished"


def num_summaries(folder):
    return len(list((folder / "shard_summaries").glob("*.json")))


@pytest.mark.parametrize(
    ("per_class", "num_damaged", "side", "shard_bytes", "reads"),
    [
        (12, 10, 20, 4000, 12 + 60),  # one read per class and split comes before the writing
        pytest.param(900, 20, 48, 200_000, 3000, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    tmp_path, program_env, monkeypatch, capsys, per_class, num_damaged, side, shard_bytes, reads
):
    train, reasons = image_sources.make_photos(per_class, num_damaged=num_damaged, side=side)
    validation, _ = image_sources.make_photos(per_class // 9, num_damaged=0, seed=20000, side=side)
    arguments = image_sources.write_imagenet(tmp_path / "source", train, validation)
    arguments += ["--min-side=4", "--jobs=2"]
    monkeypatch.setattr(writer, "_SHARD_BYTES", shard_bytes)
    assert prepare(tmp_path / "whole", *arguments) == 1
    image_sources.assert_reported(tmp_path / "whole", capsys.readouterr().out, reasons)
    assert image_sources.stored(tmp_path / "whole", "train") == image_sources.intact(train, reasons)
    out, kill = tmp_path / "killed", {"shard_bytes": shard_bytes}
    folder = run_killed(
        program_env, out, arguments,
        function="functa.data.prepare.photographs:read_photo", count=reads, **kill,
    )  # fmt: skip
    first = num_summaries(folder)
    # A shard is renamed, and its summary is not written.
    run_killed(
        program_env, out, arguments, function="functa.runtime.config:write_json", count=3, **kill
    )
    assert num_summaries(folder) == first + 2
    assert len(list(folder.glob("*[0-9]"))) == first + 3
    assert prepare(out, *arguments) == 1
    printed = capsys.readouterr().out
    image_sources.assert_reported(out, printed, reasons)
    assert printed.count("written by an earlier run") == first + 2
    assert first + 2 < printed.count(".array_record-")
    assert image_sources.digests(out) == image_sources.digests(tmp_path / "whole")
    assert os.listdir(out / "small") == ["1.0.0"]


def test_a_run_killed_before_the_last_rename_leaves_no_data_set(tmp_path, capsys, program_env):
    data = image_sources.arrays()
    np.savez(tmp_path / "a.npz", **data)
    out, arguments = tmp_path / "out", ["--source", tmp_path / "a.npz"]
    run_killed(
        program_env, out, arguments,
        function="etils.epath:gpath.PosixGPath.rename", count=1, shard_bytes=10**9,
    )  # fmt: skip
    with pytest.raises(DataError, match="functa prepare"):
        image_records.open_builder("small", out)
    assert prepare(out, *arguments) == 0
    assert capsys.readouterr().out.count("written by an earlier run") == 2
    assert os.listdir(out / "small") == ["1.0.0"]
    image_sources.assert_holds(out, data)


@pytest.fixture
def unfinished(tmp_path, monkeypatch, capsys):
    """(folder of three finished shards of a run that a full disk ended, arguments of the run)."""
    monkeypatch.setattr(writer, "_SHARD_BYTES", 4000)
    photos, _ = image_sources.make_photos(12, num_damaged=10)
    root = write_folder(tmp_path / "photos", photos)
    arguments = ["--source", root, *FRACTION]
    calls = []

    class FullDisk(sharded_writer.array_record_module.ArrayRecordWriter):
        def close(self):
            super().close()
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("write() failed: No space left on device")

    with monkeypatch.context() as context:
        context.setattr(sharded_writer.array_record_module, "ArrayRecordWriter", FullDisk)
        assert prepare(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    folder = tmp_path / "out" / "small" / "1.0.0.unfinished"
    assert "No space left on device" in error
    assert f"{folder} keeps the finished shards" in error
    assert num_summaries(folder) == 3
    return folder, arguments


def test_a_full_disk_keeps_the_finished_shards(unfinished, tmp_path, capsys):
    folder, arguments = unfinished
    assert prepare(tmp_path / "out", *arguments) == 1
    assert capsys.readouterr().out.count("written by an earlier run") == 3
    assert not folder.exists()
    assert prepare(tmp_path / "whole", *arguments) == 1
    assert image_sources.digests(tmp_path / "out") == image_sources.digests(tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "a.npz", **image_sources.arrays())
    usage = types.SimpleNamespace(free=5000)
    monkeypatch.setattr(sharded_writer.shutil, "disk_usage", lambda path: usage)
    assert prepare(tmp_path / "out", "--source", tmp_path / "a.npz") == 2
    error = capsys.readouterr().err
    assert "5,000 are free" in error
    assert "Nothing is written" in error
    assert os.listdir(tmp_path / "out" / "small") == []


def test_another_source_is_refused(unfinished, tmp_path, capsys):
    folder, (_, photos, *_) = unfinished
    before = image_sources.digests(folder)
    for options in (["--test-fraction=0.5", "--min-side=4"], ["--test-fraction=0.25"]):
        assert prepare(tmp_path / "out", "--source", photos, *options) == 2
        assert f"{folder} was begun from another source" in capsys.readouterr().err
    (photos / "n03" / "n03_0.JPEG").write_bytes(encode(77, size=(40, 40)))
    assert prepare(tmp_path / "out", "--source", photos, *FRACTION) == 2
    assert f"{folder} was begun from another source" in capsys.readouterr().err
    assert image_sources.digests(folder) == before


def test_damaged_shards_and_summaries_are_written_again(unfinished, tmp_path, capsys):
    folder, arguments = unfinished
    summaries = sorted((folder / "shard_summaries").glob("*.json"))
    shard = folder / summaries[0].stem
    data = shard.read_bytes()
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    summaries[1].write_text("{")
    assert prepare(tmp_path / "out", *arguments) == 1
    assert capsys.readouterr().out.count("written by an earlier run") == len(summaries) - 2
    assert (folder.parent / "1.0.0" / shard.name).read_bytes() == data


def test_two_runs_at_once(unfinished, tmp_path, capsys):
    folder, arguments = unfinished
    with storage.locked(folder.parent / "1.0.0.lock"):
        assert prepare(tmp_path / "out", *arguments) == 2
    assert str(folder.parent) in capsys.readouterr().err
    assert folder.exists()


def test_ctrl_c(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    np.savez(tmp_path / "a.npz", **image_sources.arrays())
    monkeypatch.setattr(writer, "ShardWriter", interrupt)
    assert prepare(tmp_path / "out", "--source", tmp_path / "a.npz") == 130
    assert os.listdir(tmp_path / "out" / "small") == []


def test_a_lock_that_its_owner_has_removed(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    monkeypatch.setattr(storage.fcntl, "flock", lambda *_: path.unlink())
    with pytest.raises(ValueError, match=str(tmp_path)), storage.locked(path):
        pass
