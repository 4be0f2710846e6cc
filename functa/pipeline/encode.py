"""The encode stage: images -> latents -> the shards of a functaset.

Three things go on at once: the device fits a batch, a reader thread reads and augments the next
one, and a writer thread fetches, rounds and writes the ones before. Shards are independent of
each other: a batch never spans two, has a fixed size (the last one of a shard is padded) and a
fixed share of every device. So any process can make any shard, and a shard that is made again
holds the same bytes.

Files are all that processes need of each other: shard s, counted over all splits, belongs to
process s % process_count; process 0 waits for all and writes the manifest, the others wait for the
manifest.
"""

import collections
import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.augmented_copies import read_records
from functa.data.functaset import format, writer
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.manifest import complete_manifest, encode_metrics, wait_for_manifest
from functa.data.functaset.writer import FunctasetSpec, LatentShardWriter
from functa.data.images import ImageSource
from functa.data.read_timeout import patient, read_ahead
from functa.data.sharded_writer import Shard
from functa.runtime import config as config_lib
from functa.runtime import mesh as mesh_lib
from functa.runtime import storage

Fit = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

_AHEAD = 4  # batches that may wait for the writer thread
_READERS = len(
    os.sched_getaffinity(0)
)  # threads, each with a batch: a core decodes fewer images than a chip fits
# Parts of the config that decide what the records hold; meta_learn does by the field's digest.
_DECISIVE = ("name", "seed", "data", "field", "inner_loop", "encode")
_INDIFFERENT = ("data_dir", "cache")  # of config.data: where images lie changes no record


def check(config: ConfigDict) -> None:
    """Raises ValueError with all that is impossible in config.encode, one line each."""
    c = config.encode
    problems = [
        f"encode.{key}={c[key]} must be at least 1"
        for key in ("batch_size", "num_augmentations")
        if c[key] < 1
    ]
    if not 0 < c.shard_megabytes < float("inf"):
        problems.append(f"encode.shard_megabytes={c.shard_megabytes} must be above 0")
    if c.compression not in writer.COMPRESSIONS:
        known = ", ".join(writer.COMPRESSIONS)
        problems.append(f"encode.compression={c.compression!r}: known are {known}")
    if c.dtype not in format.STORED_AS:
        known = ", ".join(format.STORED_AS)
        problems.append(f"encode.dtype={c.dtype!r}: known are {known}")
    if c.crop not in ("none", "pad", "resize"):
        problems.append(f"encode.crop={c.crop!r}: known are none, pad, resize")
    side = min(config.data.image_shape[:2])
    if c.crop == "pad" and not 1 <= c.crop_padding < side:
        problems.append(f"encode.crop_padding={c.crop_padding} must be from 1 to {side - 1}")
    if c.crop == "resize" and not 0 < c.crop_min_area < 1:
        problems.append(f"encode.crop_min_area={c.crop_min_area} must lie between 0 and 1")
    if c.num_augmentations > 1 and not c.flip and c.crop == "none":
        problems.append(
            f"encode.num_augmentations={c.num_augmentations} equal copies: set encode.flip or encode.crop"
        )
    if problems:
        raise ValueError("\n".join(problems))


def encode(
    *,
    directory: epath.PathLike,
    splits: dict[str, ImageSource],
    fit: Fit,
    field_digest: str,
    config: ConfigDict,
    class_names: Sequence[str],
    process_index: int,
    process_count: int,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Makes the functaset at `directory`, or what is missing of it.

    Args:
      directory: of the functaset; a local path or gs://.
      splits: train, validation and test.
      fit: images [b, h, w, c] float32 in [0, 1], sharded over this process's devices -> (latents
        [b, i, j, d] float32, psnr [b] float32, dB at data range 1). Called with one batch size,
        config.encode.batch_size times the process's devices. Arrays in its closure must be host
        arrays or lie on this process's devices.
      field_digest: of what `fit` fits with.
      config: the whole config.
      class_names: in the order of the labels.
      progress: called with (records done, records of this process).
      stop: called after every batch and while other processes are waited for; what it raises ends
        the encoding, and what was complete stays.
    Returns:
      psnr, psnr_of_mean_mse: of the test split, dB (before the latents were rounded to dtype).
      train_psnr, validation_psnr: likewise, where the split has records.
      examples, shards: records and files of all splits.
      bytes_per_example: bytes of all shards by records.
      examples_per_second: records by seconds, all processes together, without compilation; the
        shards of earlier calls count with the seconds they took.
      earlier_seconds: that the shards of earlier calls took.
      field_digest, functaset_digest: as given, and of the manifest.
    Raises:
      ValueError: impossible config.encode, no images to train or test on, or latents of another
        shape than config.field.latent_shape.
      UserError: a complete functaset of another field or config stands there.
      FloatingPointError: latents that are not finite or too large for the dtype; names the example.
      OSError: ENOSPC: no room; names the bytes needed.
      TimeoutError: other processes have stopped writing.
      InputTimeoutError: a read does not come back.
    """
    check(config)
    directory = epath.Path(directory)
    spec = _spec(splits, field_digest, config, class_names)
    target = writer.sharded_set(directory, spec)
    summaries = target.finished(target.shards)
    earlier = sum(summary["seconds"] for summary in summaries.values()) / process_count
    manifest = complete_manifest(directory, spec, summaries)
    if manifest is None:
        directory.mkdir(parents=True, exist_ok=True)
        target.require_space([shard for shard in target.shards if shard not in summaries])
        if process_index == 0:
            (directory / format.MANIFEST).unlink(missing_ok=True)
        mine = target.shards[process_index::process_count]
        todo = [shard for shard in mine if shard not in summaries]
        # Summaries of another spec: waiting processes would read them at every poll.
        storage.thread_map(lambda shard: target.summary_file(shard).unlink(missing_ok=True), todo)
        _make_shards(
            directory,
            todo,
            total=sum(shard.num_records for shard in mine),
            splits=splits,
            fit=fit,
            spec=spec,
            config=config,
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
    config: ConfigDict,
    class_names: Sequence[str],
) -> FunctasetSpec:
    """Builds the spec of the functaset.

    Raises:
      ValueError: there are no images to train or test on.
    """
    copies = {"train": config.encode.num_augmentations, "validation": 1, "test": 1}
    num_records = {split: splits[split].num_examples * copies[split] for split in copies}
    for split in ("train", "test"):
        if not num_records[split]:
            raise ValueError(f"the {split} split has no images; see config.data")
    values = config_lib.to_dict(config)
    decisive = {key: values[key] for key in _DECISIVE}
    decisive["data"] = {
        key: value for key, value in values["data"].items() if key not in _INDIFFERENT
    }
    i, j, d = config.field.latent_shape
    layout = RecordLayout(latent_shape=(i, j, d), dtype=config.encode.dtype)
    return FunctasetSpec(
        field_digest=field_digest,
        config=decisive,
        layout=layout,
        compression=config.encode.compression,
        class_names=tuple(class_names),
        num_records=num_records,
        records_per_shard=writer.records_per_shard(config.encode.shard_megabytes, layout),
    )


def _make_shards(
    directory: epath.Path,
    todo: list[Shard],
    *,
    total: int,
    splits: dict[str, ImageSource],
    fit: Fit,
    spec: FunctasetSpec,
    config: ConfigDict,
    progress: Callable[[int, int], None],
    stop: Callable[[], None],
) -> None:
    """Makes the shards `todo` of this process, whose shards have `total` records."""
    done = total - sum(shard.num_records for shard in todo)
    progress(done, total)
    if not todo:
        return
    on_devices = _to_devices()
    batch_size = config.encode.batch_size * jax.local_device_count()
    images = np.zeros((batch_size, *config.data.image_shape), np.uint8)
    latents, psnr = jax.block_until_ready(fit(on_devices(images)))  # compiles
    expected = (batch_size, *spec.layout.latent_shape), (batch_size,)
    if (latents.shape, psnr.shape) != expected:
        raise ValueError(
            f"fit returns latents and psnr of shapes {latents.shape}, {psnr.shape}, not {expected}"
        )
    waiting: collections.deque[tuple[futures.Future, int]] = collections.deque()

    def settle(most: int) -> None:
        nonlocal done
        while len(waiting) > most:
            future, count = waiting.popleft()
            future.result()
            done += count
            progress(done, total)
            if done < total:
                stop()

    with (
        contextlib.closing(_Output(directory, spec)) as output,
        futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="functaset") as thread,
    ):
        blocks = [
            (shard, range(start, min(start + batch_size, shard.stop)))
            for shard in todo
            for start in range(shard.start, shard.stop, batch_size)
        ]
        reads = (
            functools.partial(read_records, splits[shard.split], shard.split, rows, config)
            for shard, rows in blocks
        )
        batches = patient(
            read_ahead(reads, threads=_READERS),
            lambda number: _name(*blocks[min(number, len(blocks) - 1)]),
        )
        for (shard, rows), batch in zip(blocks, batches, strict=True):
            fitted = fit(on_devices(_pad(batch.pop("image"), batch_size)))
            waiting.append((thread.submit(output.append, shard, batch, *fitted), len(rows)))
            settle(_AHEAD)
        settle(0)


def _name(shard: Shard, rows: range) -> str:
    return f"records {rows[0]} to {rows[-1]} of the {shard.split} split"


class _Output:
    """The writer thread's side: blocks of records arrive in order and become shards."""

    def __init__(self, directory: epath.Path, spec: FunctasetSpec):
        self._directory, self._spec = directory, spec
        self._writer: LatentShardWriter | None = None
        self._failed = False
        self._mark = time.perf_counter()

    def append(self, shard: Shard, batch: dict[str, np.ndarray], latents, psnr) -> None:
        """The next records of `shard`; those of the padding are dropped."""
        if self._failed:
            return  # the failure has been raised where it happened; blocks behind it have no shard
        try:
            if self._writer is None:
                self._writer = LatentShardWriter(self._directory, shard=shard, spec=self._spec)
            count = len(batch["id"])
            self._writer.write(
                latents=np.asarray(latents)[:count], psnr=np.asarray(psnr)[:count], **batch
            )
            if self._writer.num_records == shard.num_records:
                now = time.perf_counter()
                self._writer.finish(seconds=now - self._mark)
                self._writer, self._mark = None, now
        except BaseException:
            self._failed = True
            raise

    def close(self) -> None:
        """Removes a shard that was not finished."""
        if self._writer is not None:
            self._writer.abort()


def _pad(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Fills a batch with copies of its last image."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def _to_devices() -> Callable[[np.ndarray], jax.Array]:
    """uint8 images on the host -> float32 in [0, 1], sharded over this process's devices.

    Every device gets its own batch_size images, so that its program does not depend on how many
    there are.
    """
    mesh = mesh_lib.make_mesh(jax.local_devices())
    sharding = mesh_lib.batched(mesh)
    to_unit = jax.jit(
        lambda images: images.astype(jnp.float32) / jnp.float32(255), out_shardings=sharding
    )
    return lambda images: to_unit(jax.device_put(images, sharding))
