"""How large a functaset will be, before there is one: what noise takes, written as latents are."""

import math
import os
import tempfile

import numpy as np

from functa.data.functaset.format import RecordLayout
from functa.data.functaset.writer import FunctasetSpec, LatentShardWriter
from functa.data.sharded_writer import Shard

_SAMPLE_BYTES = 16 << 20  # of records that are written to measure one
_BLOCK = 1 << 16  # bytes that ArrayRecord writes at least: of records, then of their index
_INDEX = 1  # blocks


def record_bytes(layout: RecordLayout, compression: str) -> float:
    """Bytes that a record adds to a shard, compression included, from a shard of noise.

    Latents are standard normal numbers. What compression saves is the likeness of their exponents, whatever the unit
    is: those of images, whose channels and cells differ in size, take two to three hundredths more or less
    (docs/SCALE.md, "Plan and measurement").
    """
    count = int(np.clip(_SAMPLE_BYTES // layout.record_bytes, 16, 20_000))
    spec = FunctasetSpec(
        field_digest="",
        config={},
        layout=layout,
        compression=compression,
        class_names=(),
        num_records={"train": count, "validation": 0, "test": 0},
        records_per_shard=count,
    )
    (shard,) = spec.shards
    rng = np.random.default_rng(0)
    numbers = np.arange(count)
    with tempfile.TemporaryDirectory(prefix="functaset-size-") as folder:
        with LatentShardWriter(folder, shard=shard, spec=spec) as writer:
            for some in np.array_split(numbers, 16):
                shape = (len(some), *layout.latent_shape)
                writer.write(
                    latents=rng.standard_normal(shape, np.float32),
                    label=some % 1000,
                    id=some,
                    copy=some % 50,
                    psnr=rng.normal(38.0, 3.0, len(some)).astype(np.float32),
                )
            writer.finish(seconds=0.0)
        size = os.path.getsize(os.path.join(folder, shard.file))
    # On average half a block is empty.
    return (size / _BLOCK - _INDEX - 0.5) * _BLOCK / count


def shard_bytes(shards: list[Shard], of_record: float) -> int:
    """Bytes of all shards: whole blocks of records, and of their index. The small JSON files beside them are not
    counted."""
    return sum(
        (math.ceil(shard.num_records * of_record / _BLOCK) + _INDEX) * _BLOCK for shard in shards
    )
