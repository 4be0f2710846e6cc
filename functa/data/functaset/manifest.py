"""The manifest of a functaset, made from the parts of its shards, and what TFDS reads beside it."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.reader import Manifest, read_manifest
from functa.data.functaset.writer import Recipe, Shard, part_file
from functa.fields import psnr
from functa.runtime import config, digests, errors, storage

_POLL_SECONDS = 0.5
_STALL_SECONDS = 600.0  # without a change in the directory, other processes are taken for dead
# In an object store a look is several requests, and a shard shows only when it is whole.
_REMOTE_POLL_SECONDS = 2.0
_REMOTE_STALL_SECONDS = 3600.0

Parts = dict[Shard, dict[str, Any]]


def finished_parts(directory: epath.PathLike, shards: list[Shard], recipe: Recipe) -> Parts:
    """The parts of those shards that stand finished and are of this recipe; the others must be made.

    Looks at sizes only; functaset_verify.py reads the bytes. Asks for what the folder of parts lists, several at
    a time.
    """
    directory, identity = epath.Path(directory), recipe.identity
    listed: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        listed = {file.name for file in (directory / format.PARTS).iterdir()}
    known = [shard for shard in shards if part_file(directory, shard).name in listed]
    parts = storage.thread_map(lambda shard: _finished_part(directory, shard, identity), known)
    return {shard: part for shard, part in zip(known, parts, strict=True) if part is not None}


def _finished_part(directory: epath.Path, shard: Shard, identity: str) -> dict[str, Any] | None:
    try:
        part = json.loads(part_file(directory, shard).read_text())
        same = part["identity"] == identity
        same = same and part["shard"]["bytes"] == (directory / shard.file).stat().length
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # no shard, or a damaged part, which says nothing of its shard
    return part if same else None


def write_manifest(
    directory: epath.PathLike, *, shards: list[Shard], recipe: Recipe
) -> dict[str, Any]:
    """Writes what TFDS reads and then the manifest, which makes the set valid.

    Made of the shards' parts; no record is read. Shards and parts of earlier, incomplete attempts
    with another recipe are removed.

    Raises:
      ValueError: a shard is not finished.
    """
    directory = epath.Path(directory)
    parts = finished_parts(directory, shards, recipe)
    missing = [shard.file for shard in shards if shard not in parts]
    if missing:
        raise ValueError(f"{directory}: {len(missing)} shards are not finished, first {missing[0]}")
    _remove_strangers(directory, shards)
    _write_metadata(directory, parts, recipe)
    statistics = _statistics(
        [part for shard, part in parts.items() if shard.split == "train"], recipe
    )
    manifest = (
        recipe.header()
        | statistics
        | {
            "splits": {
                split: _split_entry([part for shard, part in parts.items() if shard.split == split])
                for split in format.SPLITS
            },
            "files": {
                name: format.file_digest(directory / name)
                for name in format.METADATA
                if (directory / name).exists()
            },
            "digest": "",
        }
    )
    manifest["digest"] = digests.json_digest(manifest)
    config.write_json(directory / format.MANIFEST, manifest)
    return manifest


def complete_set(
    directory: epath.PathLike, shards: list[Shard], recipe: Recipe, parts: Parts
) -> Manifest | None:
    """The manifest of the functaset that stands complete in `directory`, if one does.

    Args:
      parts: what is known of finished ones; gets those that are found.
    Raises:
      UserError: it is of another field or config. It is left alone: it may have taken days.
    """
    directory = epath.Path(directory)
    if not (directory / format.MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        logging.warning("the manifest is made again: %s", error)
        return None
    there = {key: getattr(manifest, key) for key in recipe.header()}
    there["examples"] = {split: entry["examples"] for split, entry in manifest.splits.items()}
    old = config.flatten(there)
    new = config.flatten(recipe.header() | {"examples": recipe.num_records})
    differing = [
        f"{key}: {old.get(key, '(absent)')} there, {new.get(key, '(absent)')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise errors.UserError(
            f"{directory} holds a complete functaset of another making: {'; '.join(differing)}."
            " Remove it, or choose another workdir"
        )
    _all_there(directory, shards, recipe, parts)
    described = [parts[shard]["shard"] for shard in shards if shard in parts]
    return manifest if described == manifest.shards else None


def completed(
    directory: epath.Path,
    shards: list[Shard],
    recipe: Recipe,
    parts: Parts,
    *,
    writes: bool,
    stop: Callable[[], None],
) -> Manifest:
    """Waits for the shards of all processes and for the manifest.

    Args:
      parts: what is known of finished shards; gets all others.
      writes: this process makes the manifest.
      stop: called again and again; what it raises ends the waiting.
    Raises:
      TimeoutError: nothing has changed for long.
    """
    if writes:
        wait_until(directory, lambda: _all_there(directory, shards, recipe, parts), stop)
        write_manifest(directory, shards=shards, recipe=recipe)
    return wait_until(directory, lambda: complete_set(directory, shards, recipe, parts), stop)


def _all_there(
    directory: epath.PathLike, shards: list[Shard], recipe: Recipe, parts: Parts
) -> bool:
    """Adds to `parts` what has been finished since; whether none is missing now."""
    missing = [shard for shard in shards if shard not in parts]
    if missing:
        parts.update(finished_parts(directory, missing, recipe))
    return len(parts) == len(shards)


def summary(manifest: Manifest, parts: Parts, *, process_count: int) -> dict[str, Any]:
    """The metrics of the encode stage; encode.encode describes them."""
    examples = sum(split["examples"] for split in manifest.splits.values())
    seconds = math.fsum(part["seconds"] for part in parts.values()) / process_count
    test = manifest.splits["test"]
    result = {"psnr": test["psnr"], "psnr_of_mean_mse": test["psnr_of_mean_mse"]}
    for split in ("train", "validation"):
        if manifest.splits[split]["examples"]:
            result[f"{split}_psnr"] = manifest.splits[split]["psnr"]
    return result | {
        "examples": examples,
        "shards": len(manifest.shards),
        "latent_bytes": manifest.layout.latent_bytes,
        "bytes_per_example": sum(shard["bytes"] for shard in manifest.shards) / examples,
        "examples_per_second": examples / seconds,
    }


def _split_entry(parts) -> dict[str, Any]:
    examples = sum(part["shard"]["records"] for part in parts)
    entry: dict[str, Any] = {"examples": examples, "psnr": None, "psnr_of_mean_mse": None}
    if parts:
        entry["psnr"] = sum(part["psnr_sum"] for part in parts) / examples
        mse = np.float64(sum(part["mse_sum"] for part in parts) / examples)
        entry["psnr_of_mean_mse"] = float(psnr.psnr(mse))
    entry["shards"] = [part["shard"] for part in parts]
    return entry


def _statistics(parts, recipe: Recipe) -> dict[str, Any]:
    """Of the train split: per channel, and of all numbers alike."""
    i, j, _ = recipe.layout.latent_shape
    positions = i * j * sum(part["shard"]["records"] for part in parts)
    mean = np.sum([part["sum"] for part in parts], axis=0) / positions
    mean_square = np.sum([part["sum_of_squares"] for part in parts], axis=0) / positions
    scalar_mean, scalar_mean_square = mean.mean(), mean_square.mean()
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(mean_square - mean**2, 0)).tolist(),
        "scalar_mean": float(scalar_mean),
        "scalar_std": float(np.sqrt(np.maximum(scalar_mean_square - scalar_mean**2, 0))),
    }


def _write_metadata(directory: epath.Path, parts: Parts, recipe: Recipe) -> None:
    """dataset_info.json and features.json."""
    import tensorflow_datasets as tfds  # here: reading a functaset needs no second for its import

    features = tfds.features
    layout = recipe.layout
    stored = np.dtype(format.STORAGE_DTYPES[layout.dtype])
    notes = {
        "bfloat16": "bits of bfloat16: latents.view(ml_dtypes.bfloat16)",
        "int8": "multiply by scale",
    }
    spec = {
        "latents": features.Tensor(
            shape=layout.latent_shape,
            dtype=stored.type,
            encoding="bytes",
            doc=notes.get(layout.dtype),
        ),
        "label": features.Scalar(np.int64),
        "id": features.Scalar(np.int64, doc="index in the image data set's own split"),
        "copy": features.Scalar(np.int32, doc="augmented copy; 0 is the image itself"),
        "psnr": features.Scalar(np.float32, doc="dB, data range 1"),
    }
    if recipe.class_names:
        spec["label"] = features.ClassLabel(names=list(recipe.class_names))
    if layout.dtype == "int8":
        spec["scale"] = features.Tensor(
            shape=layout.latent_shape[2:], dtype=np.float16, encoding="bytes", doc="of each channel"
        )
    infos = []
    for split in format.SPLITS:
        own = [part["shard"] for shard, part in parts.items() if shard.split == split]
        if own:
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard["records"] for shard in own],
                    num_bytes=sum(shard["bytes"] for shard in own),
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features.FeaturesDict(spec),
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,  # the check needs TensorFlow
        description=f"Images as latents of a field, {layout.dtype}; statistics in"
        f" {format.MANIFEST}.",
    )


def _remove_strangers(directory: epath.Path, shards: list[Shard]) -> None:
    """Removes shards, parts and unfinished files that are not of this plan."""
    files = {shard.file for shard in shards}
    parts = {part_file(directory, shard).name for shard in shards}
    strangers = [
        file
        for file in directory.iterdir()
        if file.name.startswith(f"{format.NAME}-") and file.name not in files
    ]
    folder = directory / format.PARTS
    strangers += [file for file in folder.iterdir() if file.name not in parts]
    storage.thread_map(lambda file: file.unlink(), strangers)


def wait_until(directory: epath.Path, ready: Callable[[], Any], stop: Callable[[], None]) -> Any:
    """The first true result of `ready`; other processes must go on writing until then."""
    remote = storage.is_remote(directory)
    patience = _REMOTE_STALL_SECONDS if remote else _STALL_SECONDS
    seen: dict[str, int] = {}
    since = time.monotonic()
    while not (result := ready()):
        state = _state(directory)
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > patience:
            raise TimeoutError(
                f"nothing has changed in {directory} for {patience:.0f} s: other processes have"
                " stopped. Shards that are complete stay valid; the same command goes on from there"
            )
        stop()
        time.sleep(_REMOTE_POLL_SECONDS if remote else _POLL_SECONDS)
    return result


def _state(directory: epath.Path) -> dict[str, int]:
    """What changes as long as others write: the files, and the sizes of those that grow."""
    state = {}
    for file in directory.iterdir():
        growing = file.name.endswith(format.TEMPORARY)
        with contextlib.suppress(FileNotFoundError):  # renamed since it was listed
            state[file.name] = file.stat().length if growing else 0
    return state
