"""The manifest of a functaset, made from the parts of its shards, and what TFDS reads beside it."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from functa import config as config_lib
from functa import metrics
from functa.data import functaset_format
from functa.data.functaset import Manifest, read_manifest
from functa.data.functaset_writer import Recipe, Shard, finished_part, part_file

_POLL_SECONDS = 0.5
_STALL_SECONDS = 600.0  # without a change in the directory, other processes are taken for dead


def write_manifest(
    directory: epath.PathLike, *, shards: list[Shard], recipe: Recipe
) -> dict[str, Any]:
    """Writes what TFDS reads and then the manifest, which makes the set valid.

    Shards and parts of earlier, incomplete attempts with another recipe are removed.

    Raises:
      ValueError: a shard is not finished.
    """
    directory = epath.Path(directory)
    parts = {shard: finished_part(directory, shard, recipe) for shard in shards}
    missing = [shard.file for shard, part in parts.items() if part is None]
    if missing:
        raise ValueError(f"{directory}: {len(missing)} shards are not finished, first {missing[0]}")
    _remove_strangers(directory, shards)
    _write_metadata(directory, shards, recipe)
    statistics = _statistics([parts[shard] for shard in shards if shard.split == "train"], recipe)
    manifest = (
        recipe.header()
        | statistics
        | {
            "splits": {
                split: _split_entry([part for shard, part in parts.items() if shard.split == split])
                for split in functaset_format.SPLITS
            },
            "files": {
                name: functaset_format.file_digest(directory / name)
                for name in functaset_format.METADATA
                if (directory / name).exists()
            },
            "digest": "",
        }
    )
    manifest["digest"] = functaset_format.json_digest(manifest)
    config_lib.write_json(directory / functaset_format.MANIFEST, manifest)
    return manifest


def complete_set(
    directory: epath.PathLike, shards: list[Shard], recipe: Recipe
) -> tuple[Manifest, list[dict[str, Any]]] | None:
    """The manifest and the parts of the functaset that stands complete in `directory`, if one does.

    Raises:
      MendableError: it is of another field or config. It is left alone: it may have taken days.
    """
    directory = epath.Path(directory)
    if not (directory / functaset_format.MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        logging.warning("the manifest is made again: %s", error)
        return None
    there = {key: getattr(manifest, key) for key in recipe.header()}
    there["examples"] = {split: entry["examples"] for split, entry in manifest.splits.items()}
    old = config_lib.flatten(there)
    new = config_lib.flatten(recipe.header() | {"examples": recipe.num_records})
    differing = [
        f"{key}: {old.get(key, '(absent)')} there, {new.get(key, '(absent)')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise config_lib.MendableError(
            f"{directory} holds a complete functaset of another making: {'; '.join(differing)}."
            " Remove it, or choose another workdir"
        )
    parts = [finished_part(directory, shard, recipe) for shard in shards]
    if [part and part["shard"] for part in parts] != manifest.shards:
        return None
    return manifest, [part for part in parts if part is not None]


def summary(
    manifest: Manifest, parts: list[dict[str, Any]], *, process_count: int
) -> dict[str, Any]:
    """The metrics of the encode stage; encode.encode describes them."""
    examples = sum(split["examples"] for split in manifest.splits.values())
    seconds = sum(part["seconds"] for part in parts) / process_count
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
        entry["psnr_of_mean_mse"] = float(metrics.psnr(mse))
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


def _write_metadata(directory: epath.Path, shards: list[Shard], recipe: Recipe) -> None:
    """dataset_info.json and features.json."""
    import tensorflow_datasets as tfds  # here: reading a functaset needs no second for its import

    features = tfds.features
    layout = recipe.layout
    stored = np.dtype(functaset_format.STORED_AS[layout.dtype])
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
    for split in functaset_format.SPLITS:
        own = [shard for shard in shards if shard.split == split]
        if own:
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard.records for shard in own],
                    num_bytes=sum((directory / shard.file).stat().length for shard in own),
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features.FeaturesDict(spec),
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,  # the check needs TensorFlow
        description=f"Images as latents of a field, {layout.dtype}; statistics in"
        f" {functaset_format.MANIFEST}.",
    )


def _remove_strangers(directory: epath.Path, shards: list[Shard]) -> None:
    """Removes shards, parts and unfinished files that are not of this plan."""
    files = {shard.file for shard in shards}
    parts = {part_file(directory, shard).name for shard in shards}
    for file in directory.iterdir():
        if file.name.startswith(f"{functaset_format.NAME}-") and file.name not in files:
            file.unlink()
    for file in (directory / functaset_format.PARTS).iterdir():
        if file.name not in parts:
            file.unlink()


def wait_until(directory: epath.Path, ready: Callable[[], Any], stop: Callable[[], None]) -> Any:
    """The first true result of `ready`; other processes must go on writing until then."""
    seen: dict[str, int] = {}
    since = time.monotonic()
    while not (result := ready()):
        state = {}
        for file in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):  # renamed since it was listed
                state[file.name] = file.stat().length
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since > _STALL_SECONDS:
            raise TimeoutError(
                f"nothing has changed in {directory} for {_STALL_SECONDS:.0f} s: other processes have"
                " stopped. Shards that are complete stay valid; the same command goes on from there"
            )
        stop()
        time.sleep(_POLL_SECONDS)
    return result
