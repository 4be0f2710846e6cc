"""Contents of an encoded functaset, and equal bytes after kills, damage and with several processes."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from functa.configs import digits
from functa.data.augmentation import augment
from functa.data.functaset import format, reader
from functa.data.functaset import manifest as functaset_manifest
from functa.data.functaset import writer as functaset_writer
from functa.data.sharded_writer import ShardedSet
from functa.fields import psnr as metrics
from functa.pipeline import encode, validation
from tests.support import functaset_sets

TRAIN_SHARDS, SHARDS = 4, 7  # 66, 7 and 25 records in shards of 20


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """(directory, metrics) of a functaset, encoded without interruption."""
    directory = tmp_path_factory.mktemp("run") / "functaset"
    return directory, functaset_sets.encode(directory)


@contextlib.contextmanager
def program(directory, env, *, index=0, count=1, seconds=0.0, **more):
    """The same encoding in a subprocess."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.functaset_sets"]
        + [str(part) for part in (directory, index, count, seconds)],
        env=env | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def never(*arguments):
    raise AssertionError("fit was called")


def temporary_files(directory):
    return [path for path in directory.rglob("*") if path.name.endswith((".tmp", ".partial"))]


def expected_record(split, image, id, copy):
    """Slow reference: latents and PSNR of one image."""
    config = functaset_sets.make_config()
    if copy:
        settings = {k: config.encode[k] for k in ("flip", "crop", "crop_padding", "crop_min_area")}
        image = augment(image, shape=(8, 8), seed=config.seed, example_id=id, copy=copy, **settings)
    unit = image.astype(np.float32) / np.float32(255)
    latents = np.empty(functaset_sets.LATENT_SHAPE, np.float32)
    for i in range(2):
        for j in range(2):
            cell = unit[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1)
            latents[i, j] = cell @ functaset_sets._MATRIX
    return latents, 30 + 10 * unit.mean()


def test_tfds_reads_every_record(encoded):
    directory, _ = encoded
    builder = tfds.builder_from_directory(directory)
    assert builder.info.name == "functaset"
    splits = functaset_sets.make_splits()
    for split, copies in (("train", 3), ("validation", 1), ("test", 1)):
        records = builder.as_data_source(split)
        assert len(records) == functaset_sets.SIZES[split] * copies
        for number, record in enumerate(records):
            example, copy = divmod(number, copies)
            image = splits[split].read(np.array([example]))
            latents, psnr = expected_record(split, image["image"][0], int(image["id"][0]), copy)
            assert record["latents"].dtype == np.float16
            np.testing.assert_allclose(record["latents"], latents, rtol=1e-3, atol=1e-3)
            assert record["psnr"] == pytest.approx(psnr, abs=1e-3)
            assert record["label"] == image["label"][0]
            assert (record["id"], record["copy"]) == (image["id"][0], copy)
    assert tuple(builder.info.features["label"].names) == functaset_sets.CLASS_NAMES


def test_manifest_and_metrics_agree_with_the_records(encoded):
    directory, result = encoded
    opened = reader.open_functaset(directory, field_digest=functaset_sets.DIGEST)
    manifest = opened.manifest
    read = {
        split: opened.source(split).read(np.arange(opened.num_examples(split)))
        for split in ("train", "validation", "test")
    }
    stored = read["train"]["latents"].astype(np.float64)
    np.testing.assert_allclose(manifest.mean, stored.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, stored.std((0, 1, 2)), rtol=1e-9)
    assert manifest.scalar_mean == pytest.approx(stored.mean(), rel=1e-12)
    assert manifest.scalar_std == pytest.approx(stored.std(), rel=1e-9)
    for split, records in read.items():
        psnr = records["psnr"].astype(np.float64)
        entry = manifest.splits[split]
        assert entry["psnr"] == pytest.approx(psnr.mean(), rel=1e-12)
        mean_mse = np.mean(10 ** (-psnr / 10))
        assert entry["psnr_of_mean_mse"] == pytest.approx(metrics.psnr(mean_mse), rel=1e-9)
    assert manifest.latent_shape == list(functaset_sets.LATENT_SHAPE)
    assert manifest.config["encode"]["num_augmentations"] == 3
    assert "cache" not in manifest.config["data"]
    assert functaset_sets.problems(directory, field_digest=functaset_sets.DIGEST) == []
    assert temporary_files(directory) == []
    assert result["psnr"] == manifest.splits["test"]["psnr"]
    assert result["train_psnr"] == manifest.splits["train"]["psnr"]
    assert result["examples"] == 98
    assert result["shards"] == len(manifest.shards) == SHARDS
    size = sum(os.path.getsize(directory / shard["file"]) for shard in manifest.shards)
    assert result["bytes_per_example"] == size / 98
    summaries = (directory / functaset_writer.SUMMARIES).iterdir()
    seconds = sum(json.loads(path.read_text())["seconds"] for path in summaries)
    assert result["examples_per_second"] == pytest.approx(98 / seconds)


def test_complete_functaset_is_not_changed(encoded):
    directory, result = encoded
    before = functaset_sets.contents(directory)
    again = functaset_sets.encode(directory, fit=never)
    assert again.pop("earlier_seconds") > 0
    assert again == {key: value for key, value in result.items() if key != "earlier_seconds"}
    assert functaset_sets.contents(directory) == before


def test_killed_and_resumed_encoding_writes_the_same_bytes(encoded, tmp_path, program_env):
    """Killed twice, at random moments, with one device; the reference was encoded with four."""
    directory = tmp_path / "functaset"
    moments = random.Random()
    finished_at_kills = []
    for _ in range(2):
        with program(directory, program_env, seconds=0.03) as process:
            known = len(list(directory.glob("shard_summaries/*.json")))
            while not list(directory.glob("*.tmp")) and process.poll() is None:
                time.sleep(0.001)
            assert len(list(directory.glob("shard_summaries/*.json"))) <= known + 1
            time.sleep(moments.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished_at_kills.append(len(list(directory.glob("shard_summaries/*.json"))))
        with pytest.raises(ValueError, match="no complete functaset"):
            reader.open_functaset(directory, field_digest=None)
    with program(directory, program_env) as process:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert output == "no tensorflow\n"
    assert finished_at_kills[0] < SHARDS
    assert functaset_sets.contents(directory) == functaset_sets.contents(encoded[0])


def test_two_processes_write_the_same_bytes_as_one(encoded, tmp_path, program_env):
    directory = tmp_path / "functaset"
    with (
        program(directory, program_env, index=0, count=2) as first,
        program(directory, program_env, index=1, count=2) as second,
    ):
        for process in (first, second):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    assert functaset_sets.contents(directory) == functaset_sets.contents(encoded[0])


@pytest.mark.parametrize("index", [0, 1])
def test_process_stops_if_the_others_have_stopped(tmp_path, monkeypatch, index):
    monkeypatch.setattr(functaset_manifest, "_STALL_SECONDS", 0.2)
    monkeypatch.setattr(functaset_manifest, "_POLL_SECONDS", 0.02)
    with pytest.raises(TimeoutError, match="stopped"):
        functaset_sets.encode(tmp_path / "functaset", process_index=index, process_count=2)
    shards = [path.name for path in tmp_path.glob("functaset/functaset-*")]
    assert len(shards) == SHARDS // 2 + (index == 0)
    assert not (tmp_path / "functaset" / "manifest.json").exists()


def test_summaries_are_read_as_rarely_as_possible(tmp_path, monkeypatch):
    """In an object store, each read is a round trip."""
    read = []
    read_summary = ShardedSet._read_summary

    def counting(self, shard, **options):
        read.append(shard.file)
        return read_summary(self, shard, **options)

    monkeypatch.setattr(ShardedSet, "_read_summary", counting)
    directory = tmp_path / "functaset"
    functaset_sets.encode(directory)
    # Once to wait for the shards, and once for the manifest.
    assert len(set(read)) == SHARDS
    assert sorted(read) == sorted([*set(read), *set(read)])
    read.clear()
    functaset_sets.encode(directory, fit=never)
    assert len(read) == SHARDS
    # While it waits, a process reads no summary twice.
    read.clear()
    monkeypatch.setattr(functaset_manifest, "_STALL_SECONDS", 0.3)
    monkeypatch.setattr(functaset_manifest, "_POLL_SECONDS", 0.02)
    with pytest.raises(TimeoutError):
        functaset_sets.encode(tmp_path / "half", process_index=0, process_count=2)
    assert sorted(read) == sorted(set(read))


def test_summaries_of_another_spec_are_removed_first(tmp_path):
    """Otherwise waiting processes would read them at every poll."""
    directory = tmp_path / "functaset"
    functaset_sets.encode(directory)
    (directory / format.MANIFEST).unlink()

    def broken(images):
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        functaset_sets.encode(directory, field_digest="sha256:" + "1" * 64, fit=broken)
    assert list((directory / functaset_writer.SUMMARIES).iterdir()) == []
    functaset_sets.encode(directory, field_digest="sha256:" + "1" * 64)
    assert functaset_sets.problems(directory, field_digest="sha256:" + "1" * 64) == []


def test_ids_beyond_32_bits_are_kept(tmp_path):
    directory = tmp_path / "functaset"
    splits = {split: functaset_sets.Images(9, first_id=2**40) for split in functaset_sets.SIZES}
    functaset_sets.encode(directory, splits=splits)
    assert functaset_sets.problems(directory) == []
    ids = [2**40 + k for k in range(9) for _ in range(3)]
    opened = reader.open_functaset(directory, field_digest=None)
    assert opened.source("train").read(np.arange(27))["id"].tolist() == ids
    source = tfds.builder_from_directory(directory).as_data_source("train")
    assert [int(record["id"]) for record in source] == ids


def test_manifest_does_not_depend_on_the_block_size(tmp_path, monkeypatch):
    for numbers in (12, 60, 1 << 21):  # 1, 5 and all records at once
        monkeypatch.setattr(functaset_writer, "_BLOCK_NUMBERS", numbers)
        functaset_sets.write(tmp_path / str(numbers))
    first, *others = (functaset_sets.contents(tmp_path / str(n)) for n in (12, 60, 1 << 21))
    assert all(other == first for other in others)


LARGE = """
import sys, time
import jax, numpy as np
from functa.runtime import memory
from functa.data.functaset import writer as functaset_writer
from tests.support import functaset_sets

write = functaset_writer.LatentShardWriter.write

def slow_write(self, **records):
    time.sleep(0.02)
    write(self, **records)

functaset_writer.LatentShardWriter.write = slow_write

@jax.jit
def fitted(images):
    means = images.mean((1, 2, 3))
    return jax.numpy.broadcast_to(means[:, None, None, None], (8, 32, 32, 64)), means

def fit(images):
    peaks.append(peak())
    return fitted(images)

def peak():
    return memory.peak_bytes() >> 20

config = functaset_sets.make_config(batch_size=8, dtype="int8", shard_megabytes=4.0, num_augmentations=1, crop="none")
config.field.latent_shape = (32, 32, 64)
sizes = {"train": int(sys.argv[2]), "validation": 8, "test": 8}
peaks = []
functaset_sets.encode(
    sys.argv[1], config=config, fit=fit,
    splits={split: functaset_sets.Images(size) for split, size in sizes.items()},
    progress=lambda done, total: None,
)
print(peaks[10], peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, program_env):
    """800 images: 210 MB of float32 latents, 53 MB as stored. A batch has 2 MB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "functaset"), "800"],
        env=program_env | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late - early < 60, done.stdout
    assert functaset_sets.problems(tmp_path / "functaset") == []


DAMAGES = {
    "missing shard": (lambda shard, summary: shard.unlink(), 1),
    "truncated shard": (lambda shard, summary: shard.write_bytes(shard.read_bytes()[:-1]), 1),
    "truncated summary": (lambda shard, summary: summary.write_text("{"), 1),
    "missing summary": (lambda shard, summary: summary.unlink(), 1),
    "manifest": (lambda shard, summary: (shard.parent / "manifest.json").write_text("{}"), 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_damaged_shards_are_made_again(encoded, tmp_path, monkeypatch, damage):
    change, made = DAMAGES[damage]
    directory = tmp_path / "functaset"
    shutil.copytree(encoded[0], directory)
    shard = directory / "functaset-train.array_record-00001-of-00004"
    change(shard, directory / "shard_summaries" / f"{shard.name}.json")
    written = []
    finish = functaset_writer.LatentShardWriter.finish

    def recording_finish(self, **arguments):
        written.append(self._shard.file)
        finish(self, **arguments)

    monkeypatch.setattr(functaset_writer.LatentShardWriter, "finish", recording_finish)
    functaset_sets.encode(directory)
    assert written == [shard.name] * made
    assert functaset_sets.contents(directory) == functaset_sets.contents(encoded[0])


def test_complete_functaset_of_another_field_or_config_is_refused(encoded):
    directory, _ = encoded
    before = functaset_sets.contents(directory)
    other = "sha256:" + "1" * 64
    with pytest.raises(ValueError, match="different field or config") as caught:
        functaset_sets.encode(directory, field_digest=other, fit=never)
    assert functaset_sets.DIGEST in str(caught.value)
    assert other in str(caught.value)
    with pytest.raises(ValueError, match="dtype: float16 there, int8 now"):
        functaset_sets.encode(directory, config=functaset_sets.make_config(dtype="int8"), fit=never)
    with pytest.raises(ValueError, match=r"examples.test: 25 there, 24 now"):
        functaset_sets.encode(
            directory,
            splits=functaset_sets.make_splits() | {"test": functaset_sets.Images(24)},
            fit=never,
        )
    moved = functaset_sets.make_config()
    moved.data.data_dir, moved.data.cache = "elsewhere", "none"
    functaset_sets.encode(directory, config=moved, fit=never)
    assert functaset_sets.contents(directory) == before


@pytest.mark.parametrize("records", [30, 20])
def test_unfinished_shards_of_another_field_are_replaced(encoded, tmp_path, records):
    """With 20 records per shard, names and sizes are equal."""
    directory = tmp_path / "functaset"
    config = functaset_sets.make_config(shard_megabytes=functaset_sets.megabytes(records))

    def other_fit(images):
        latents, psnr = functaset_sets.fit(images)
        return -latents, psnr

    functaset_sets.encode(directory, config=config, fit=other_fit, field_digest="sha256:1")
    (directory / "manifest.json").unlink()  # as if the program had been killed
    (directory / "functaset-train.array_record-00000-of-00003.tmp").write_bytes(b"half")
    functaset_sets.encode(directory)
    assert functaset_sets.contents(directory) == functaset_sets.contents(encoded[0])
    assert functaset_sets.problems(directory) == []


def test_functaset_without_a_shard_has_no_manifest_during_repair(encoded, tmp_path):
    directory = tmp_path / "functaset"
    shutil.copytree(encoded[0], directory)
    (directory / "functaset-train.array_record-00001-of-00004").unlink()
    with pytest.raises(AssertionError, match="fit was called"):
        functaset_sets.encode(directory, fit=never)
    assert not (directory / "manifest.json").exists()


class Poisoned(functaset_sets.Images):
    """Image 13 is white, the others are black."""

    def __init__(self):
        super().__init__(25, first_id=5000)
        self.images[:] = 0
        self.images[13] = 255


@pytest.mark.parametrize(
    ("latent", "psnr", "message"),
    [
        (np.nan, 30.0, "latents are not finite"),
        (np.inf, 30.0, "latents are not finite"),
        (1.0, np.nan, "psnr is not finite"),
        (7e4, 30.0, "latents as float16 are not finite"),
    ],
)
def test_example_that_is_not_finite_is_named(tmp_path, latent, psnr, message):
    def poisoned_fit(images):
        latents, values = functaset_sets.fit(images)
        white = images.min((1, 2, 3)) > 0.99
        latents = jax.numpy.where(white[:, None, None, None], jax.numpy.float32(latent), latents)
        return latents, jax.numpy.where(white, jax.numpy.float32(psnr), values)

    directory = tmp_path / "functaset"
    arguments = {"splits": functaset_sets.make_splits() | {"test": Poisoned()}}
    with pytest.raises(FloatingPointError, match=f"{message}: test example id 5013, copy 0"):
        functaset_sets.encode(directory, fit=poisoned_fit, **arguments)
    assert temporary_files(directory) == []
    assert len(list(directory.glob("functaset-train*"))) == TRAIN_SHARDS
    functaset_sets.encode(directory, **arguments)
    assert functaset_sets.problems(directory) == []


def test_no_shard_is_written_after_a_failure(tmp_path):
    """Batches of 16, 4 and 16 records are queued; the last two would fill the first shard."""

    def poisoned_fit(images):
        latents, psnr = functaset_sets.fit(images)
        white = images.min((1, 2, 3)) > 0.99
        return jax.numpy.where(white[:, None, None, None], jax.numpy.float32("nan"), latents), psnr

    splits = functaset_sets.make_splits()
    splits["train"].images[2] = 255
    config = functaset_sets.make_config(crop="none")
    with pytest.raises(FloatingPointError, match="train example id 2, copy 0"):
        functaset_sets.encode(tmp_path / "f", fit=poisoned_fit, splits=splits, config=config)
    assert [path for path in (tmp_path / "f").rglob("*") if path.is_file()] == []


def test_progress_is_complete_and_an_exception_of_stop_ends_the_encoding(encoded, tmp_path):
    seen = []
    directory = tmp_path / "functaset"

    def stop_in_the_middle():
        if seen[-1][0] >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        functaset_sets.encode(
            directory,
            progress=lambda done, total: seen.append((done, total)),
            stop=stop_in_the_middle,
        )
    assert temporary_files(directory) == []
    finished = len(list(directory.glob("functaset-*")))
    assert 0 < finished < SHARDS
    again = []
    functaset_sets.encode(directory, progress=lambda done, total: again.append((done, total)))
    assert again[0][0] >= 40
    assert again[-1] == (98, 98)
    assert again == sorted(again)
    assert {total for _, total in seen + again} == {98}
    assert functaset_sets.contents(directory) == functaset_sets.contents(encoded[0])


def test_devices_do_not_wait_for_the_disk(tmp_path, monkeypatch):
    """The first write waits until the devices have received three more batches."""
    calls, enough = [], threading.Event()

    def counting_fit(images):
        calls.append(images)
        if len(calls) >= 5:  # one compiles, one is being written
            enough.set()
        return functaset_sets.fit(images)

    write = functaset_writer.LatentShardWriter.write

    def slow_write(self, **records):
        assert enough.wait(timeout=60), f"only {len(calls)} batches before the first was written"
        write(self, **records)

    monkeypatch.setattr(functaset_writer.LatentShardWriter, "write", slow_write)
    functaset_sets.encode(tmp_path / "functaset", fit=counting_fit)


def test_batches_have_one_shape_and_never_span_two_shards(tmp_path):
    shapes = []

    def recording_fit(images):
        shapes.append((images.shape, images.dtype, float(images.max())))
        return functaset_sets.fit(images)

    functaset_sets.encode(tmp_path / "functaset", fit=recording_fit)
    assert {shape for shape, _, _ in shapes} == {(4 * jax.local_device_count(), 8, 8, 1)}
    assert {dtype for _, dtype, _ in shapes} == {np.dtype(np.float32)}
    assert max(value for _, _, value in shapes) == 1.0
    # One batch to compile; shards of at most 20 records, batches of 16.
    assert len(shapes) == 1 + 2 + 2 + 2 + 1 + 1 + 2 + 1


def test_full_disk_is_reported_before_fitting(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(total=10**9, used=10**9 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="5,000") as caught:
        functaset_sets.encode(tmp_path / "functaset", fit=never)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "functaset")


def test_disk_that_fills_up_keeps_the_complete_shards(tmp_path, program_env):
    """A limit of the file size replaces the full disk."""
    directory = tmp_path / "functaset"
    with program(directory, program_env, LARGEST_FILE="150000") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    last = errors.strip().splitlines()[-1]
    assert "File too large" in last
    assert str(directory / "functaset-test.array_record-00000-of-00001") in last
    assert temporary_files(directory) == []
    assert len(list(directory.glob("functaset-*"))) == 2
    assert len(list(directory.glob("shard_summaries/*.json"))) == 2
    assert not (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        ({"batch_size": 0, "shard_megabytes": 0.0}, ["batch_size", "shard_megabytes"]),
        (
            {"compression": "zip", "dtype": "float8", "crop": "cut"},
            ["compression", "dtype", "crop"],
        ),
        ({"crop": "pad", "crop_padding": 0}, ["crop_padding"]),  # copies would be equal
        ({"crop": "pad", "crop_padding": 8}, ["crop_padding"]),
        ({"crop": "resize", "crop_min_area": 0.0}, ["crop_min_area"]),
        ({"crop": "resize", "crop_min_area": 1.0}, ["crop_min_area"]),
        ({"flip": False, "crop": "none"}, ["num_augmentations"]),
    ],
)
def test_impossible_settings_are_reported(changes, keys):
    config = functaset_sets.make_config(**changes)
    problems = encode.validate(config.encode, image_shape=functaset_sets.IMAGE_SHAPE)
    reported = [re.match(r"encode\.(\w+)=", problem)[1] for problem in problems]
    assert sorted(reported) == sorted(keys)


def test_train_split_without_images_is_refused(tmp_path):
    splits = functaset_sets.make_splits() | {"train": functaset_sets.Images(0)}
    with pytest.raises(ValueError, match="train split"):
        functaset_sets.encode(tmp_path / "functaset", splits=splits, fit=never)


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_images_is_reported(split):
    config = digits.get_config("tiny")
    sources = functaset_sets.make_splits() | {split: functaset_sets.Images(0)}
    (problem,) = validation.validate(config, lambda: sources, stages=["encode"])
    assert f"data.{split}_split" in problem


def test_validation_split_may_be_empty(tmp_path):
    directory = tmp_path / "functaset"
    result = functaset_sets.encode(
        directory, splits=functaset_sets.make_splits() | {"validation": functaset_sets.Images(0)}
    )
    assert "validation_psnr" not in result
    opened = reader.open_functaset(directory, field_digest=None)
    empty = opened.source("validation")
    assert empty.num_examples == 0
    assert empty.read(np.arange(0))["latents"].shape == (0, *functaset_sets.LATENT_SHAPE)
    assert functaset_sets.problems(directory) == []
    assert set(tfds.builder_from_directory(directory).info.splits) == {"train", "test"}
