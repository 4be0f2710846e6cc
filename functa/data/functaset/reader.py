"""Reading a functaset: a data set of latents in ArrayRecord files that TFDS also opens.

    functaset/manifest.json                                  written last; alone makes the set valid
    functaset/functaset-SPLIT.array_record-00000-of-00009    shards
    functaset/dataset_info.json, features.json               what TFDS reads
    functaset/parts/SHARD.json                               what is known of each finished shard

Somebody else's program needs neither this package nor TensorFlow:

    source = tfds.builder_from_directory("runs/NAME/functaset").as_data_source("train")

A record holds
    latents  [i, j, d] of the manifest's dtype. bfloat16 appears as its bits, in uint16
             (`latents.view(ml_dtypes.bfloat16)`); int8 needs its scale: latents * scale.
    scale    [d] float16, int8 only
    label    class, -1 if there is none
    id       index of the image in the split that its own data set has
    copy     number of the augmented copy; 0 is the image itself
    psnr     dB, data range 1, of the fit before the latents were rounded to the dtype
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.runtime import digests, storage
from functa.runtime.errors import DamagedFileError

_TOGETHER = 100  # records of a shard from which on one call for all of them is faster
_READ_BLOCK = 256  # records decoded at once when a whole split is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json holds, under the same names.

    Attributes:
      format_version: of all files.
      digest: of the manifest itself.
      field_digest: of the field and inner rates that made the latents.
      config: the parts of the run's config that decide the records.
      latent_shape: [i, j, d].
      dtype: of the latents: float16, bfloat16, float32, int8.
      class_names: in the order of the labels; none: unknown.
      splits: {split: {examples: records, augmented copies included; psnr: dB, mean over records;
        psnr_of_mean_mse: dB; shards: [{file, records, bytes, sha256, ids: [least, greatest]}]}};
        both numbers are null in a split without records.
      mean, std: [d], of the stored latents of the train split.
      scalar_mean, scalar_std: of all their numbers alike.
      files: {file that TFDS reads: digest}.
    """

    format_version: int
    digest: str
    field_digest: str
    config: dict[str, Any]
    latent_shape: list[int]
    dtype: str
    class_names: list[str]
    splits: dict[str, dict[str, Any]]
    mean: list[float]
    std: list[float]
    scalar_mean: float
    scalar_std: float
    files: dict[str, str]

    @property
    def layout(self) -> RecordLayout:
        i, j, d = self.latent_shape
        return RecordLayout(latent_shape=(i, j, d), dtype=self.dtype)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Of all splits, in order."""
        return [shard for split in self.splits.values() for shard in split["shards"]]


class Functaset:
    """A complete functaset; see `open_functaset`.

    Attributes:
      path: its directory.
      manifest: its Manifest.
    """

    def __init__(self, *, path: epath.Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest

    def num_examples(self, split: str) -> int:
        """Records of a split, augmented copies included."""
        return self._split(split)["examples"]

    def source(self, split: str, cache: str) -> "HostSource | FileSource":
        """Random access to a split.

        Args:
          cache: host: decoded once into memory; none: read and decoded at every access. For the
            memory of devices see data/latent_batches.py.
        Returns:
          An object with `num_examples` and read(indices [k]) -> what RecordLayout.unpack tells:
          latents as they are stored, label, id, copy, psnr.
        """
        if cache not in ("host", "none"):
            raise ValueError(f"cache must be host or none, not {cache!r}")
        source = FileSource(path=self.path, split=self._split(split), layout=self.manifest.layout)
        return source if cache == "none" else HostSource(source)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest.splits:
            raise ValueError(f"no split {split!r}; there are {', '.join(self.manifest.splits)}")
        return self.manifest.splits[split]


class FileSource:
    """Decodes the asked-for records at every read; can be pickled and shared by threads."""

    def __init__(self, *, path: epath.Path, split: dict[str, Any], layout: RecordLayout):
        self.num_examples = split["examples"]
        self._layout, self._path, self._shards = layout, path, split["shards"]
        self._ends = np.cumsum([shard["records"] for shard in self._shards], dtype=np.int64)
        self._remote = storage.is_remote(path)
        files = [f"{path / shard['file']}[0:{shard['records']}]" for shard in split["shards"]]
        self._records = array_record_data_source.ArrayRecordDataSource(files) if files else None

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Functaset.source`.

        Raises:
          IndexError: an index is negative or not less than num_examples.
          DamagedFileError: a record cannot be read; names the shard.
        """
        indices = _checked(indices, self.num_examples)
        if self._records is None or not indices.size:
            return self._layout.unpack([])
        try:
            return self._layout.unpack(self._fetch(indices))
        except (RuntimeError, ValueError) as error:
            raise DamagedFileError(self._damage(indices) or f"{self._path}: {error}") from error

    def _fetch(self, indices: np.ndarray) -> Sequence[bytes]:
        """All at once from a store, and from a disk where a shard has many of them; else one after the other.

        ArrayRecord starts threads for every call, one a shard: a batch of 256 records of 200 shards then takes five
        times as long as its records one by one. The loader has threads of its own.
        """
        assert self._records is not None
        if self._remote or len(indices) >= _TOGETHER * len(self._holding(indices)):
            return self._records.__getitems__(indices.tolist())
        return [self._records[index] for index in indices.tolist()]

    def _holding(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of the shards that hold `indices`."""
        return np.unique(np.searchsorted(self._ends, indices, side="right"))

    def _damage(self, indices: np.ndarray) -> str:
        """What is wrong with the shards that hold `indices`."""
        problems = []
        for number in self._holding(indices):
            shard = self._shards[number]
            file = self._path / shard["file"]
            problems.append(wrong_size(file, shard["bytes"]) or wrong_bytes(file, shard["sha256"]))
        return "; ".join(f"{problem}; delete it and run again" for problem in problems if problem)


class HostSource:
    """A whole split in memory."""

    def __init__(self, source: FileSource):
        self.num_examples = source.num_examples
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, self.num_examples, _READ_BLOCK):
            stop = min(start + _READ_BLOCK, self.num_examples)
            block = source.read(np.arange(start, stop))
            for name, values in block.items():
                if name not in arrays:
                    arrays[name] = np.empty((self.num_examples, *values.shape[1:]), values.dtype)
                arrays[name][start:stop] = values
        self.arrays = arrays or source.read(np.arange(0))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """See `Functaset.source`."""
        indices = _checked(indices, self.num_examples)
        return {name: values[indices] for name, values in self.arrays.items()}


def open_functaset(path: epath.PathLike, *, field_digest: str | None) -> Functaset:
    """Opens a complete functaset.

    Args:
      path: its directory.
      field_digest: of the field that is going to decode it; None: any.
    Raises:
      ValueError: no complete set there; the manifest is damaged or of another format; a shard is
        missing or has another size than when it was written; the set was made with another field
        (names both sides); more shards than this process may open.
    """
    path = epath.Path(path)
    manifest = read_manifest(path)
    if field_digest is not None and field_digest != manifest.field_digest:
        raise ValueError(another_field(path, manifest, field_digest))
    if not storage.is_remote(path):
        storage.allow_open_files(len(manifest.shards))  # a shard is opened once and stays open
    problems = storage.thread_map(
        lambda shard: wrong_size(path / shard["file"], shard["bytes"]), manifest.shards
    )
    for problem in filter(None, problems):
        raise ValueError(f"{problem}; encode again to make it anew")
    return Functaset(path=path, manifest=manifest)


def wrong_size(file: epath.Path, size: int) -> str | None:
    """What is wrong with a file of `size` bytes, as far as one request tells: missing, or of another size."""
    try:
        found = file.stat().length
    except FileNotFoundError:
        return f"{file} is missing"
    return None if found == size else f"{file} has {found} bytes, not {size}"


def wrong_bytes(file: epath.Path, digest: str) -> str | None:
    """What is wrong with a file by its digest: missing, or damaged. Reads all of it."""
    try:
        found = format.file_digest(file)
    except FileNotFoundError:
        return f"{file} is missing"
    return None if found == digest else f"{file} is damaged: its digest is {found}, not {digest}"


def read_manifest(path: epath.PathLike) -> Manifest:
    """The manifest of a functaset's directory.

    Raises:
      ValueError: there is none, so the set is not complete; or it is damaged or of another format
        version.
    """
    file = epath.Path(path) / format.MANIFEST
    try:
        values = json.loads(file.read_text())
        version, digest = values["format_version"], values["digest"]
    except FileNotFoundError as error:
        raise ValueError(
            f"{file} does not exist: no complete functaset there; run the encode stage"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); encode again to make it anew") from error
    if version != format.FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, this program reads"
            f" {format.FORMAT_VERSION}; encode again"
        )
    if digest != (found := digests.json_digest(values | {"digest": ""})):
        raise ValueError(f"{file} is damaged: its digest is {found}, not {digest}; encode again")
    return Manifest(**values)


def another_field(path: epath.Path, manifest: Manifest, field_digest: str) -> str:
    return (
        f"{path} was encoded with the field {manifest.field_digest}, this field is"
        f" {field_digest}; encode again with this field, or use the field that made the set"
    )


def _checked(indices: np.ndarray, num_examples: int) -> np.ndarray:
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < num_examples:
        raise IndexError(
            f"indices {indices.min()} to {indices.max()} are not in [0, {num_examples})"
        )
    return indices
