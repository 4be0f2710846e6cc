"""Small functasets for tests: random images, a linear "fit", and a program that encodes them.

python -m tests.support.functaset_sets DIRECTORY PROCESS_INDEX PROCESS_COUNT SECONDS_A_BATCH
"""

import os
import sys
import time

import jax
import numpy as np

from functa.configs import common
from functa.data.functaset import (
    format,
    manifest,
    verification,
)
from functa.data.functaset import (
    writer as functaset_writer,
)
from functa.data.functaset.format import RecordLayout
from functa.pipeline.run import Run

DIGEST = "sha256:" + "0" * 64
IMAGE_SHAPE = (8, 8, 1)
LATENT_SHAPE = (2, 2, 3)
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = {"train": 22, "validation": 7, "test": 25}


class Images:
    """An ImageSource of random images; ids begin at `first_id`."""

    image_shape = IMAGE_SHAPE

    def __init__(self, num_examples, *, first_id=0):
        self.num_examples = num_examples
        self._first_id = first_id
        random = np.random.default_rng(first_id + 1000 * num_examples)
        self.images = random.integers(0, 256, (num_examples, *IMAGE_SHAPE), dtype=np.uint8)

    def read(self, indices):
        return {
            "image": self.images[indices],
            "label": (indices % 10).astype(np.int32),
            "id": self._first_id + indices.astype(np.int64),
        }


def make_splits():
    """The validation images have the ids behind those of the train split, as real ones do."""
    firsts = {"train": 0, "validation": SIZES["train"], "test": 0}
    return {split: Images(SIZES[split], first_id=firsts[split]) for split in SIZES}


def megabytes(records):
    """encode.shard_megabytes of shards of so many records."""
    return records * RecordLayout(LATENT_SHAPE, "float16").record_bytes / 1e6


def make_config(**changes):
    """Three copies per training image, shards of 20 records, four images per device."""
    config = common.base()
    config.name = "invented"
    config.data.image_shape = IMAGE_SHAPE
    config.field.latent_shape = LATENT_SHAPE
    config.encode.update(
        {
            "batch_size": 4,
            "shard_megabytes": megabytes(20),
            "num_augmentations": 3,
            "flip": True,
            "crop": "pad",
            "crop_padding": 1,
        }
    )
    config.encode.update(changes)
    return config


_MATRIX = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


@jax.jit
def fit(images):
    """Cells of 4x4 pixels times a matrix; brighter images are better fitted."""
    b = images.shape[0]
    cells = images.reshape(b, 2, 4, 2, 4).swapaxes(2, 3).reshape(b, 2, 2, 16)
    return cells @ _MATRIX, 30 + 10 * images.mean((1, 2, 3))


def slow_fit(seconds):
    def slow(images):
        time.sleep(seconds)
        return fit(images)

    return slow


def encode(directory, **changes):
    """Encodes random images with the linear fit, or with `changes`."""
    run = Run(changes.pop("config", None) or make_config(), directory, print)
    run.sources = changes.pop("splits", None) or make_splits()
    run.class_names = changes.pop("class_names", CLASS_NAMES)
    encoder = run.encoder(changes.pop("fit", fit), field_digest=changes.pop("field_digest", DIGEST))
    arguments = {
        "process_index": 0,
        "process_count": 1,
        "progress": lambda done, total: None,
        "stop": lambda: None,
    }
    return encoder.encode(directory, **(arguments | changes))


def make_records(num_records, latent_shape, seed):
    random = np.random.default_rng(seed)
    return {
        "latents": random.normal(size=(num_records, *latent_shape)).astype(np.float32),
        "label": random.integers(0, 10, num_records),
        "id": np.arange(num_records) + 100 * seed,
        "copy": np.arange(num_records) % 3,
        "psnr": random.uniform(20, 40, num_records).astype(np.float32),
    }


def write(
    directory,
    *,
    dtype="float16",
    sizes=None,
    latent_shape=LATENT_SHAPE,
    per_shard=20,
    compression="zstd",
    field_digest=DIGEST,
):
    """Writes a functaset of random latents without encoding; returns its records by split."""
    directory.mkdir(parents=True)
    sizes = sizes or {"train": 45, "validation": 5, "test": 30}
    spec = functaset_writer.FunctasetSpec(
        field_digest=field_digest,
        config={"name": "random", "seed": 0},
        layout=RecordLayout(latent_shape=latent_shape, dtype=dtype),
        compression=compression,
        class_names=CLASS_NAMES,
        num_records=sizes,
        records_per_shard=per_shard,
    )
    splits = {
        split: make_records(sizes[split], latent_shape, seed)
        for seed, split in enumerate(format.SPLITS)
    }
    for shard in spec.shards:
        with functaset_writer.LatentShardWriter(directory, shard=shard, spec=spec) as writer:
            records = splits[shard.split]
            writer.write(**{name: v[shard.start : shard.stop] for name, v in records.items()})
            writer.finish(seconds=1.0)
    manifest.write_manifest(directory, spec)
    return splits


def problems(directory, *, field_digest=None):
    """Problems of a verification of all bytes and records."""
    result = verification.verify(directory, field_digest=field_digest, fraction=1.0)
    whole = (result.hashed_shards, result.decoded_records) == (result.shards, result.records)
    assert result.problems or whole
    return result.problems


def contents(directory):
    """{name: bytes} of the shards, the manifest and the metadata."""
    return {f.name: f.read_bytes() for f in sorted(directory.iterdir()) if f.is_file()}


if __name__ == "__main__":
    path, index, count, seconds = sys.argv[1:]
    limit = os.environ.get("LARGEST_FILE")
    changes = {}
    if limit:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is then an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        changes["splits"] = make_splits() | {"test": Images(2000)}
        changes["config"] = make_config(shard_megabytes=megabytes(2000))
    encode(
        path,
        fit=slow_fit(float(seconds)),
        process_index=int(index),
        process_count=int(count),
        **changes,
    )
    print("tensorflow" if "tensorflow" in sys.modules else "no tensorflow")
