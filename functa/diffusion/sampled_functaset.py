"""Functasets of sampled latents."""

from typing import Any

import numpy as np
from etils import epath

from functa.data.functaset import manifest as functaset_manifest
from functa.data.functaset import writer as functaset_writer
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.reader import Manifest

_RECORDS_PER_SHARD = 10_000
_COMPRESSION = "none"


def write_functaset(
    directory: epath.Path,
    manifest: Manifest,
    *,
    latents: np.ndarray,
    labels: np.ndarray,
    provenance: dict[str, Any],
) -> None:
    """Writes samples as the split train of a functaset.

    Their PSNR is 0, because they were not fitted to images.

    Args:
      directory: must not exist.
      manifest: of the generator's training set; gives the field, the dtype and the class names.
      latents: [n, i, j, d] float32; labels: [n] integers, -1 for an unknown class.
      provenance: JSON values, stored as `sampled` in the config of the new manifest.
    """
    encode = {**manifest.config.get("encode", {}), "num_augmentations": 1}
    spec = functaset_writer.FunctasetSpec(
        field_digest=manifest.field_digest,
        config=manifest.config | {"encode": encode, "sampled": provenance},
        layout=RecordLayout(latent_shape=latents.shape[1:], dtype=manifest.dtype),
        compression=_COMPRESSION,
        class_names=tuple(manifest.class_names),
        num_records={"train": len(latents), "validation": 0, "test": 0},
        records_per_shard=_RECORDS_PER_SHARD,
    )
    directory.mkdir(parents=True)
    for shard in spec.shards:
        rows = slice(shard.start, shard.stop)
        with functaset_writer.LatentShardWriter(directory, shard=shard, spec=spec) as writer:
            writer.write(
                latents=latents[rows],
                label=labels[rows],
                id=np.arange(shard.start, shard.stop),
                copy=np.zeros(shard.num_records, np.int32),
                psnr=np.zeros(shard.num_records, np.float32),
            )
            writer.finish(seconds=0.0)
    functaset_manifest.write_manifest(directory, spec)
