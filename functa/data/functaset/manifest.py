"""Completes a functaset: its manifest and the metadata that TFDS reads, from the shard summaries."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from functa.data import sharded_writer
from functa.data.functaset import format
from functa.data.functaset.reader import Manifest, read_manifest
from functa.data.functaset.writer import FunctasetSpec, sharded_set
from functa.data.sharded_writer import Shard, ShardedSet, Summary
from functa.fields import psnr
from functa.runtime import config, digests, errors, storage

_POLL_SECONDS = 0.5
_STALL_SECONDS = 600.0  # without a change in the directory, the other processes are taken for dead
# In an object store a poll takes several requests, and a shard appears only when it is complete.
_REMOTE_FACTOR = 6


def write_manifest(directory: epath.PathLike, spec: FunctasetSpec) -> None:
    """Writes the metadata that TFDS reads, then the manifest, which makes the set valid.

    It reads the summaries of the shards and no record. Files of earlier attempts with another spec
    are removed.

    Raises:
      ValueError: a shard is not finished.
    """
    target = sharded_set(directory, spec)
    summaries = target.finished(target.shards)
    missing = [shard.file for shard in target.shards if shard not in summaries]
    if missing:
        raise ValueError(f"{directory}: {len(missing)} shards are not finished, first {missing[0]}")
    _remove_other_files(target)
    splits: dict[str, list[Summary]] = {split: [] for split in format.SPLITS}
    for shard, summary in summaries.items():
        splits[shard.split].append(summary)
    _write_metadata(target.directory, splits, spec)
    manifest = spec.header() | _statistics(splits["train"], spec.layout)
    manifest |= {
        "splits": {split: _split_entry(summaries) for split, summaries in splits.items()},
        "files": {
            name: digests.file_digest(target.directory / name)
            for name in format.METADATA
            if (target.directory / name).exists()
        },
        "digest": "",
    }
    manifest["digest"] = digests.json_digest(manifest)
    config.write_json(target.directory / format.MANIFEST, manifest)


def complete_manifest(
    directory: epath.PathLike, spec: FunctasetSpec, summaries: dict[Shard, Summary]
) -> Manifest | None:
    """The manifest of the functaset in `directory`, or None if the set is not complete.

    Args:
      summaries: known summaries; those of shards finished since are added.
    Raises:
      UserError: a complete functaset with another spec. It is kept: it may have taken days.
    """
    directory = epath.Path(directory)
    if not (directory / format.MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        logging.warning("writing the manifest again: %s", error)
        return None
    stored = {key: getattr(manifest, key) for key in spec.header()}
    stored["examples"] = {split: entry["examples"] for split, entry in manifest.splits.items()}
    old = config.flatten(stored)
    new = config.flatten(spec.header() | {"examples": spec.num_records})
    differences = [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise errors.UserError(
            f"{directory} holds a complete functaset with a different field or config:"
            f" {'; '.join(differences)}. Remove it, or choose another workdir"
        )
    _all_finished(directory, spec, summaries)
    entries = [_shard_entry(summaries[shard]) for shard in spec.shards if shard in summaries]
    return manifest if entries == manifest.shards else None


def wait_for_manifest(
    directory: epath.PathLike,
    spec: FunctasetSpec,
    summaries: dict[Shard, Summary],
    *,
    writes: bool,
    stop: Callable[[], None],
) -> Manifest:
    """Waits for the shards of all processes and for the manifest.

    Args:
      summaries: those of the shards that are known to be finished; the others are added to the dict.
      writes: whether this process writes the manifest.
      stop: called at every poll; an exception that it raises ends the wait.
    Raises:
      TimeoutError: no file has changed for a long time.
    """
    directory = epath.Path(directory)
    if writes:
        _wait_until(directory, lambda: _all_finished(directory, spec, summaries), stop)
        write_manifest(directory, spec)
    return _wait_until(directory, lambda: complete_manifest(directory, spec, summaries), stop)


def _all_finished(
    directory: epath.Path, spec: FunctasetSpec, summaries: dict[Shard, Summary]
) -> bool:
    """Adds the shards finished since to `summaries`; whether none is missing now.

    It never reads a summary twice: in an object store each takes a round trip.
    """
    missing = [shard for shard in spec.shards if shard not in summaries]
    if missing:
        summaries.update(sharded_set(directory, spec).finished(missing))
    return len(summaries) == len(spec.shards)


def encode_metrics(
    manifest: Manifest, summaries: dict[Shard, Summary], *, process_count: int
) -> dict[str, Any]:
    """Metrics of the encode stage.

    Returns:
      psnr, psnr_of_mean_mse: of the test split in dB, before the latents are quantized.
      train_psnr, validation_psnr: likewise, for splits that have records.
      examples, shards: records and files of all splits.
      latent_bytes: bytes of the latents of a record before compression.
      bytes_per_example: bytes of all shards divided by records.
      examples_per_second: of all processes, without compilation. Shards of earlier calls count with
        the seconds they took.
    """
    examples = sum(split["examples"] for split in manifest.splits.values())
    seconds = math.fsum(summary["seconds"] for summary in summaries.values()) / process_count
    test = manifest.splits["test"]
    metrics = {"psnr": test["psnr"], "psnr_of_mean_mse": test["psnr_of_mean_mse"]}
    for split in ("train", "validation"):
        if manifest.splits[split]["examples"]:
            metrics[f"{split}_psnr"] = manifest.splits[split]["psnr"]
    return metrics | {
        "examples": examples,
        "shards": len(manifest.shards),
        "latent_bytes": manifest.layout.latent_bytes,
        "bytes_per_example": sum(shard["bytes"] for shard in manifest.shards) / examples,
        "examples_per_second": examples / seconds,
    }


def _shard_entry(summary: Summary) -> dict[str, Any]:
    return summary["shard"] | {"ids": summary["ids"]}


def _split_entry(summaries: list[Summary]) -> dict[str, Any]:
    examples = sum(summary["shard"]["records"] for summary in summaries)
    entry: dict[str, Any] = {"examples": examples, "psnr": None, "psnr_of_mean_mse": None}
    if summaries:
        entry["psnr"] = sum(summary["psnr_sum"] for summary in summaries) / examples
        mse = np.float64(sum(summary["mse_sum"] for summary in summaries) / examples)
        entry["psnr_of_mean_mse"] = float(psnr.psnr(mse))
    return entry | {"shards": [_shard_entry(summary) for summary in summaries]}


def _statistics(summaries: list[Summary], layout: format.RecordLayout) -> dict[str, Any]:
    """Mean and standard deviation of the train latents, per channel and of all numbers."""
    i, j, _ = layout.latent_shape
    positions = i * j * sum(summary["shard"]["records"] for summary in summaries)
    mean = np.sum([summary["sum"] for summary in summaries], axis=0) / positions
    squares = np.sum([summary["sum_of_squares"] for summary in summaries], axis=0) / positions
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(squares - mean**2, 0)).tolist(),
        "scalar_mean": float(mean.mean()),
        "scalar_std": float(np.sqrt(np.maximum(squares.mean() - mean.mean() ** 2, 0))),
    }


def _write_metadata(
    directory: epath.Path, splits: dict[str, list[Summary]], spec: FunctasetSpec
) -> None:
    from tensorflow_datasets import features  # the import takes a second: readers need not wait

    layout = spec.layout
    notes = {
        "bfloat16": "bits of bfloat16: latents.view(ml_dtypes.bfloat16)",
        "int8": "multiply by scale",
    }
    dtype = np.dtype(format.STORAGE_DTYPES[layout.dtype]).type
    connectors = {
        "latents": features.Tensor(
            shape=layout.latent_shape, dtype=dtype, encoding="bytes", doc=notes.get(layout.dtype)
        ),
        "label": features.Scalar(np.int64),
        "id": features.Scalar(np.int64, doc="index in the image data set's own split"),
        "copy": features.Scalar(np.int32, doc="augmented copy; 0 is the image itself"),
        "psnr": features.Scalar(np.float32, doc="dB, data range 1"),
    }
    if spec.class_names:
        connectors["label"] = features.ClassLabel(names=list(spec.class_names))
    if layout.dtype == "int8":
        connectors["scale"] = features.Tensor(
            shape=layout.latent_shape[2:], dtype=np.float16, encoding="bytes", doc="of each channel"
        )
    sharded_writer.write_tfds_metadata(
        directory,
        features=features.FeaturesDict(connectors),
        shards={split: [part["shard"] for part in parts] for split, parts in splits.items()},
        description=f"Images as latents of a field, {layout.dtype}; statistics in {format.MANIFEST}.",
    )


def _remove_other_files(target: ShardedSet) -> None:
    """Removes shards, summaries and unfinished files that are not of this set."""
    own = {shard.file for shard in target.shards}
    own |= {target.summary_file(shard).name for shard in target.shards}
    files = [*target.directory.glob(f"{format.NAME}-*"), *target.summaries.iterdir()]
    storage.thread_map(lambda file: file.unlink(), [file for file in files if file.name not in own])


def _wait_until(directory: epath.Path, ready: Callable[[], Any], stop: Callable[[], None]) -> Any:
    """First true result of `ready`, as long as other processes change files in `directory`."""
    factor = _REMOTE_FACTOR if storage.is_remote(directory) else 1
    stall_seconds = factor * _STALL_SECONDS
    sizes: dict[str, int] = {}
    since = time.monotonic()
    while not (result := ready()):
        if (now := _file_sizes(directory)) != sizes:
            sizes, since = now, time.monotonic()
        elif time.monotonic() - since > stall_seconds:
            raise TimeoutError(
                f"no file has changed in {directory} for {stall_seconds:.0f} s: the other processes"
                " have stopped. Finished shards stay valid; the same command resumes"
            )
        stop()
        time.sleep(factor * _POLL_SECONDS)
    return result


def _file_sizes(directory: epath.Path) -> dict[str, int]:
    """Names of the files, with the sizes of those that are being written (0 for the others)."""
    sizes = {}
    for file in directory.iterdir():
        growing = file.name.endswith(sharded_writer.TEMPORARY)
        with contextlib.suppress(FileNotFoundError):  # renamed since it was listed
            sizes[file.name] = file.stat().length if growing else 0
    return sizes
