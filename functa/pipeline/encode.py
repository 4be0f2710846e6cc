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
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.augmentation import read_copies
from functa.data.functaset import format, writer
from functa.data.functaset.manifest import complete_manifest, encode_metrics, wait_for_manifest
from functa.data.functaset.writer import FunctasetSpec
from functa.data.images import ImageSource
from functa.data.read_timeout import prefetch, with_timeout
from functa.data.sharded_writer import Shard
from functa.fields.pixels import to_float
from functa.runtime import memory, storage
from functa.runtime import mesh as mesh_lib
from functa.runtime.config import range_errors

Fit = Callable[[Any], tuple[jax.Array, jax.Array]]

_QUEUE_SIZE = 4  # batches that may wait for the writer thread


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


def make_encoder(
    settings: ConfigDict,
    *,
    splits: dict[str, ImageSource],
    fit: Fit,
    field_digest: str,
    latent_shape: tuple[int, int, int],
    seed: int,
    recorded: dict[str, Any],
    class_names: Sequence[str],
) -> "Encoder":
    """Makes an encoder with the settings of config.encode.

    Args:
      field_digest: of the parameters that `fit` uses.
      seed: of the augmentation.
      recorded: JSON values that determine the records; stored in the manifest.
      class_names: in the order of the labels.
    Raises:
      ValueError: the train split has no images.
    """
    copies = {"train": settings.num_augmentations, "validation": 1, "test": 1}
    num_records = {split: splits[split].num_examples * copies[split] for split in copies}
    if not num_records["train"]:
        raise ValueError("the train split has no images; see config.data")
    layout = format.RecordLayout(latent_shape=latent_shape, dtype=settings.dtype)
    spec = FunctasetSpec(
        field_digest=field_digest,
        config=recorded,
        layout=layout,
        compression=settings.compression,
        class_names=tuple(class_names),
        num_records=num_records,
        records_per_shard=writer.records_per_shard(settings.shard_megabytes, layout),
    )
    return Encoder(
        splits=splits,
        fit=fit,
        spec=spec,
        batch_size=settings.batch_size,
        num_augmentations=settings.num_augmentations,
        augmentation={
            "seed": seed,
            "flip": settings.flip,
            "crop": settings.crop,
            "crop_padding": settings.crop_padding,
            "crop_min_area": settings.crop_min_area,
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Encodes images as the records of a functaset.

    Attributes:
      splits: train, validation and test.
      fit: images [b, h, w, c] float32 in [0, 1], sharded over this process's devices -> (latents
        [b, i, j, d] float32, PSNR [b] float32 in dB). It is called with one batch size. Arrays in its
        closure must be on the host or on this process's devices.
      spec: of the functaset.
      batch_size: images per device.
      num_augmentations: copies of each training image.
      augmentation: the other settings of `read_copies`.
    """

    splits: dict[str, ImageSource]
    fit: Fit
    spec: FunctasetSpec
    batch_size: int
    num_augmentations: int
    augmentation: dict[str, Any]

    def encode(
        self,
        directory: epath.PathLike,
        *,
        process_index: int,
        process_count: int,
        progress: Callable[[int, int], None],
        stop: Callable[[], None],
    ) -> dict[str, Any]:
        """Makes the functaset in `directory`, a local path or gs://, or its missing shards.

        Args:
          progress: called with (records done, records of this process).
          stop: called after every batch and while waiting for other processes. An exception that it
            raises ends the encoding; complete shards are kept.
        Returns:
          Those of `encode_metrics`; field_digest and functaset_digest; and earlier_seconds, the time
          of the shards of earlier calls.
        Raises:
          UserError: the directory holds a complete functaset of another field or config.
          FloatingPointError: latents are not finite or overflow the dtype; names the example.
          OSError: ENOSPC, with the number of bytes needed.
          TimeoutError, InputTimeoutError: other processes have stopped; a read does not return.
        """
        directory, spec = epath.Path(directory), self.spec
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
            total = sum(shard.num_records for shard in own)
            self._make_shards(directory, missing, total=total, progress=progress, stop=stop)
            manifest = wait_for_manifest(
                directory, spec, summaries, writes=process_index == 0, stop=stop
            )
        return encode_metrics(manifest, summaries, process_count=process_count) | {
            "earlier_seconds": earlier,
            "field_digest": spec.field_digest,
            "functaset_digest": manifest.digest,
        }

    def _make_shards(
        self,
        directory: epath.Path,
        missing: Sequence[Shard],
        *,
        total: int,
        progress: Callable[[int, int], None],
        stop: Callable[[], None],
    ) -> None:
        """Makes the `missing` shards of this process, whose shards have `total` records."""
        done = total - sum(shard.num_records for shard in missing)
        progress(done, total)
        if not missing:
            return
        with contextlib.closing(self._write(directory, missing)) as counts:
            for count in counts:
                done += count
                progress(done, total)
                if done < total:
                    stop()

    def _write(self, directory: epath.Path, shards: Sequence[Shard]) -> Generator[int, None, None]:
        """Fits and writes the batches of `shards`; yields the number of records of each."""
        fit = self._compile_fit()
        pending: collections.deque[tuple[futures.Future, int]] = collections.deque()
        with (
            contextlib.closing(writer.ShardSequenceWriter(directory, self.spec)) as output,
            futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="functaset") as thread,
        ):
            for shard, batch in self._batches(shards):
                fitted = fit(batch.pop("image"))
                pending.append(
                    (thread.submit(output.append, shard, batch, *fitted), len(batch["id"]))
                )
                if len(pending) > _QUEUE_SIZE:
                    future, count = pending.popleft()
                    future.result()
                    yield count
            for future, count in pending:
                future.result()
                yield count

    def _compile_fit(self) -> Fit:
        """Returns `fit` for uint8 images [n, h, w, c], padded with copies of the last one.

        Every device receives `batch_size` images, so that its program does not depend on the number
        of devices.
        """
        sharding = mesh_lib.batched(mesh_lib.make_mesh(jax.local_devices()))
        convert = jax.jit(to_float, out_shardings=sharding)
        size = self.batch_size * jax.local_device_count()

        def fit(images: np.ndarray) -> tuple[jax.Array, jax.Array]:
            rows = np.minimum(np.arange(size), len(images) - 1)
            return self.fit(convert(jax.device_put(images[rows], sharding)))

        image_shape = self.splits["train"].image_shape
        jax.block_until_ready(fit(np.zeros((1, *image_shape), np.uint8)))  # compiles
        return fit

    def _batches(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, dict[str, np.ndarray]]]:
        """Reads the batches of `shards` in threads."""
        size = self.batch_size * jax.local_device_count()
        blocks = [
            (shard, range(start, min(start + size, shard.stop)))
            for shard in shards
            for start in range(shard.start, shard.stop, size)
        ]

        def name(number: int) -> str:
            shard, rows = blocks[min(number, len(blocks) - 1)]
            return f"records {rows[0]} to {rows[-1]} of the {shard.split} split"

        # One thread per core: a core decodes fewer images than an accelerator fits.
        reads = (functools.partial(self._read, shard.split, rows) for shard, rows in blocks)
        batches = with_timeout(prefetch(reads, threads=memory.usable_cores()), name)
        return zip((shard for shard, _ in blocks), batches, strict=True)

    def _read(self, split: str, records: range) -> dict[str, np.ndarray]:
        """Images, labels, ids and copy numbers. The copies of an example are adjacent records."""
        copies_per_example = self.num_augmentations if split == "train" else 1
        examples, copies = np.divmod(np.array(records), copies_per_example)
        batch = read_copies(self.splits[split], examples, copies, **self.augmentation)
        return {name: batch[name] for name in ("image", "label", "id")} | {"copy": copies}
