"""The encode stage: images -> latents -> the shards of a functaset.

Three activities overlap: the devices fit a batch, reader threads read and augment the next ones, and a
writer thread fetches, quantizes and writes the previous ones. Shards are independent: a batch never
spans two, has a fixed size (the last one of a shard is padded) and a fixed part on every device. So
any process can make any shard, and a shard that is made again has the same bytes.

Processes coordinate through files only. Shard s, counted over all splits, belongs to process s %
process_count. Process 0 waits for all shards and writes the manifest; the others wait for the manifest.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.augmentation import read_copies
from functa.data.functaset import format, writer
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.manifest import complete_manifest, encode_metrics, wait_for_manifest
from functa.data.functaset.writer import FunctasetSpec
from functa.data.images import ImageSource
from functa.data.read_timeout import prefetch, with_timeout
from functa.data.sharded_writer import Shard
from functa.runtime import config as config_lib
from functa.runtime import mesh as mesh_lib
from functa.runtime import storage
from functa.runtime.config import range_errors

Fit = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

_QUEUE_SIZE = 4  # batches that may wait for the writer thread
# Parts of the config that determine the records, beside the field's digest.
_RECORDED_KEYS = ("name", "seed", "data", "field", "inner_loop", "encode")
_LOCATION_KEYS = ("data_dir", "cache")  # of config.data; they do not change the records


def encode_arguments(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `encode` that a config determines."""
    values = config_lib.to_dict(config)
    recorded = {key: values[key] for key in _RECORDED_KEYS}
    for key in _LOCATION_KEYS:
        del recorded["data"][key]
    return {
        "image_shape": tuple(config.data.image_shape),
        "latent_shape": tuple(config.field.latent_shape),
        "settings": config.encode,
        "seed": config.seed,
        "recorded": recorded,
    }


def validate(settings: ConfigDict, *, image_shape: tuple[int, int, int]) -> list[str]:
    """Problems of config.encode, one line each."""
    choices = {
        "compression": writer.COMPRESSIONS,
        "dtype": format.STORAGE_DTYPES,
        "crop": ("none", "pad", "resize"),
    }
    problems = [
        f"encode.{key}={settings[key]!r} is unknown; choose from {', '.join(known)}"
        for key, known in choices.items()
        if settings[key] not in known
    ]
    problems += range_errors(
        {
            "encode.batch_size": (settings.batch_size, 1, 10**7),
            "encode.num_augmentations": (settings.num_augmentations, 1, 10**5),
            "encode.shard_megabytes": (settings.shard_megabytes, 1e-9, 1e9),
        }
    )
    if settings.crop == "pad":
        limit = min(image_shape[:2]) - 1
        problems += range_errors({"encode.crop_padding": (settings.crop_padding, 1, limit)})
    if settings.crop == "resize" and not 0 < settings.crop_min_area < 1:
        problems.append(f"encode.crop_min_area={settings.crop_min_area} must be between 0 and 1")
    if settings.num_augmentations > 1 and not settings.flip and settings.crop == "none":
        problems.append(
            f"encode.num_augmentations={settings.num_augmentations} would store equal copies: set encode.flip or "
            "encode.crop"
        )
    return problems


def encode(
    *,
    directory: epath.PathLike,
    splits: dict[str, ImageSource],
    fit: Fit,
    field_digest: str,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    settings: ConfigDict,
    seed: int,
    recorded: dict[str, Any],
    class_names: Sequence[str],
    process_index: int,
    process_count: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Makes the functaset in `directory`, or its missing shards.

    Args:
      directory: of the functaset; a local path or gs://.
      splits: train, validation and test.
      fit: images [b, h, w, c] float32 in [0, 1], sharded over this process's devices -> (latents
        [b, i, j, d] float32, PSNR [b] float32 in dB). It is called with one batch size,
        settings.batch_size times the devices of the process. Arrays in its closure must be on the host
        or on this process's devices.
      field_digest: of the parameters that `fit` uses.
      image_shape, latent_shape: (h, w, c) and (i, j, d).
      settings: config.encode.
      seed: of the augmentation.
      recorded: the part of the config that determines the records, as JSON values; stored in the
        manifest.
      class_names: in the order of the labels.
      progress: called with (records done, records of this process).
      stop: called after every batch and while waiting for other processes. An exception that it
        raises ends the encoding; complete shards are kept.
    Returns:
      psnr, psnr_of_mean_mse: of the test split in dB, before the latents are quantized.
      train_psnr, validation_psnr: likewise, for splits that have records.
      examples, shards: records and files of all splits.
      bytes_per_example: bytes of all shards divided by records.
      examples_per_second: of all processes, without compilation. Shards of earlier calls count with
        the seconds they took.
      earlier_seconds: seconds of the shards of earlier calls.
      field_digest, functaset_digest: `field_digest`, and that of the manifest.
    Raises:
      ValueError: the train split is empty, or `fit` returns latents of another shape.
      UserError: the directory holds a complete functaset of another field or config.
      FloatingPointError: latents are not finite or overflow the dtype; names the example.
      OSError: ENOSPC, with the number of bytes needed.
      TimeoutError: other processes have stopped writing.
      InputTimeoutError: a read does not return.
    """
    directory = epath.Path(directory)
    spec = _spec(splits, field_digest, latent_shape, settings, recorded, class_names)
    target = writer.sharded_set(directory, spec)
    summaries = target.finished(target.shards)
    earlier = sum(summary["seconds"] for summary in summaries.values()) / process_count
    manifest = complete_manifest(directory, spec, summaries)
    if manifest is None:
        directory.mkdir(parents=True, exist_ok=True)
        target.require_space([shard for shard in target.shards if shard not in summaries])
        if process_index == 0:
            (directory / format.MANIFEST).unlink(missing_ok=True)
        own = target.shards[process_index::process_count]
        missing = [shard for shard in own if shard not in summaries]
        # Summaries of another spec: waiting processes would read them at every poll.
        storage.thread_map(
            lambda shard: target.summary_file(shard).unlink(missing_ok=True), missing
        )
        _make_shards(
            directory,
            missing,
            total=sum(shard.num_records for shard in own),
            splits=splits,
            fit=fit,
            image_shape=image_shape,
            spec=spec,
            settings=settings,
            seed=seed,
            progress=progress,
            stop=stop,
        )
        manifest = wait_for_manifest(
            directory, spec, summaries, writes=process_index == 0, stop=stop
        )
    return encode_metrics(manifest, summaries, process_count=process_count) | {
        "earlier_seconds": earlier,
        "field_digest": field_digest,
        "functaset_digest": manifest.digest,
    }


def _spec(
    splits: dict[str, ImageSource],
    field_digest: str,
    latent_shape: tuple[int, int, int],
    settings: ConfigDict,
    recorded: dict[str, Any],
    class_names: Sequence[str],
) -> FunctasetSpec:
    """Builds the spec of the functaset.

    Raises:
      ValueError: the train split has no images.
    """
    copies = {"train": settings.num_augmentations, "validation": 1, "test": 1}
    num_records = {split: splits[split].num_examples * copies[split] for split in copies}
    if not num_records["train"]:
        raise ValueError("the train split has no images; see config.data")
    layout = RecordLayout(latent_shape=latent_shape, dtype=settings.dtype)
    return FunctasetSpec(
        field_digest=field_digest,
        config=recorded,
        layout=layout,
        compression=settings.compression,
        class_names=tuple(class_names),
        num_records=num_records,
        records_per_shard=writer.records_per_shard(settings.shard_megabytes, layout),
    )


def _make_shards(
    directory: epath.Path,
    missing: list[Shard],
    *,
    total: int,
    splits: dict[str, ImageSource],
    fit: Fit,
    image_shape: tuple[int, int, int],
    spec: FunctasetSpec,
    settings: ConfigDict,
    seed: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
) -> None:
    """Makes the `missing` shards of this process, whose shards have `total` records."""
    done = total - sum(shard.num_records for shard in missing)
    progress(done, total)
    if not missing:
        return
    to_devices = _make_to_devices()
    batch_size = settings.batch_size * jax.local_device_count()
    images = np.zeros((batch_size, *image_shape), np.uint8)
    latents, psnr = jax.block_until_ready(fit(to_devices(images)))  # compiles
    expected = (batch_size, *spec.layout.latent_shape), (batch_size,)
    if (latents.shape, psnr.shape) != expected:
        raise ValueError(
            f"fit returns latents and psnr of shapes {latents.shape}, {psnr.shape}, not {expected}"
        )
    pending: collections.deque[tuple[futures.Future, int]] = collections.deque()

    def drain(limit: int) -> None:
        """Waits until at most `limit` batches are pending."""
        nonlocal done
        while len(pending) > limit:
            future, count = pending.popleft()
            future.result()
            done += count
            progress(done, total)
            if done < total:
                stop()

    with (
        contextlib.closing(writer.ShardSequenceWriter(directory, spec)) as output,
        futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="functaset") as thread,
    ):
        blocks = [
            (shard, range(start, min(start + batch_size, shard.stop)))
            for shard in missing
            for start in range(shard.start, shard.stop, batch_size)
        ]
        reads = (
            functools.partial(_read_records, splits[shard.split], shard.split, rows, settings, seed)
            for shard, rows in blocks
        )
        batches = with_timeout(
            prefetch(reads, threads=_reader_threads()),
            lambda number: _block_name(*blocks[min(number, len(blocks) - 1)]),
        )
        for (shard, rows), batch in zip(blocks, batches, strict=True):
            fitted = fit(to_devices(_pad(batch.pop("image"), batch_size)))
            pending.append((thread.submit(output.append, shard, batch, *fitted), len(rows)))
            drain(_QUEUE_SIZE)
        drain(0)


def _reader_threads() -> int:
    """One thread per usable core: a core decodes fewer images than an accelerator fits."""
    return os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1


def _read_records(
    source: ImageSource, split: str, rows: range, settings: ConfigDict, seed: int
) -> dict[str, np.ndarray]:
    """Images, labels, ids and copy numbers of the records `rows` of a split.

    The copies of an example are adjacent records.
    """
    copies_per_example = settings.num_augmentations if split == "train" else 1
    examples, copies = np.divmod(np.arange(rows.start, rows.stop), copies_per_example)
    batch = read_copies(
        source,
        examples,
        copies,
        seed=seed,
        flip=settings.flip,
        crop=settings.crop,
        crop_padding=settings.crop_padding,
        crop_min_area=settings.crop_min_area,
    )
    return {name: batch[name] for name in ("image", "label", "id")} | {"copy": copies}


def _block_name(shard: Shard, rows: range) -> str:
    return f"records {rows[0]} to {rows[-1]} of the {shard.split} split"


def _pad(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Pads a batch with copies of its last image."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def _make_to_devices() -> Callable[[np.ndarray], jax.Array]:
    """Returns a function that moves uint8 images to this process's devices, as float32 in [0, 1].

    Every device receives settings.batch_size images, so that its program does not depend on the
    number of devices.
    """
    mesh = mesh_lib.make_mesh(jax.local_devices())
    sharding = mesh_lib.batched(mesh)
    to_unit = jax.jit(
        lambda images: images.astype(jnp.float32) / jnp.float32(255), out_shardings=sharding
    )
    return lambda images: to_unit(jax.device_put(images, sharding))
