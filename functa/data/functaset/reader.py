"""Reading a functaset, a data set of latents in ArrayRecord files that TFDS also reads.

    functaset/manifest.json                                  written last: the functaset is complete
    functaset/functaset-SPLIT.array_record-00000-of-00009    shards
    functaset/dataset_info.json, features.json               read by TFDS
    functaset/shard_summaries/SHARD.json                     statistics of each finished shard

Other programs need neither this package nor TensorFlow to read it:

    source = tfds.builder_from_directory("runs/NAME/functaset").as_data_source("train")

A record holds
    latents  [i, j, d] of the dtype in the manifest. bfloat16 values appear as their bits, uint16
             (`latents.view(ml_dtypes.bfloat16)`); int8 values must be multiplied by scale.
    scale    [d] float16, int8 only
    label    class, -1 if unknown
    id       index of the image in the split of the image data set
    copy     number of the augmented copy; 0 is the image itself
    psnr     dB, data range 1, of the fit before the latents were quantized
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
from functa.data.sources import Batch, check_indices
from functa.runtime import digests, storage
from functa.runtime.errors import DamagedFileError

_MIN_RECORDS_PER_CALL = 100  # per shard; with fewer, reading one by one is faster


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of manifest.json.

    Attributes:
      format_version: of all files.
      digest: of the manifest itself.
      field_digest: of the field and inner learning rates that made the latents.
      config: the parts of the config that determine the records.
      latent_shape: [i, j, d].
      dtype: of the latents: float16, bfloat16, float32 or int8.
      class_names: in the order of the labels; empty: unknown.
      splits: {split: {examples: number of records, with augmented copies; psnr: dB, mean over records;
        psnr_of_mean_mse: dB; shards: [{file, records, bytes, sha256, ids: [least, greatest]}]}};
        psnr and psnr_of_mean_mse are null for a split without records.
      mean, std: [d], of the stored latents of the train split.
      scalar_mean, scalar_std: the same over all channels together.
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
        """Entries of the shards of all splits, in order."""
        return [shard for split in self.splits.values() for shard in split["shards"]]


@dataclasses.dataclass(kw_only=True, eq=False)
class Functaset:
    """A complete functaset; see `open_functaset`."""

    path: epath.Path
    manifest: Manifest

    def num_examples(self, split: str) -> int:
        """Number of records of a split, with augmented copies."""
        return self._split(split)["examples"]

    def source(self, split: str) -> "FileSource":
        """Opens a split for random access; see RecordLayout.unpack for the arrays that it reads."""
        return FileSource(path=self.path, split=self._split(split), layout=self.manifest.layout)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest.splits:
            raise ValueError(f"no split {split!r}; there are {', '.join(self.manifest.splits)}")
        return self.manifest.splits[split]


class FileSource:
    """Reads and decodes records at every request."""

    def __init__(self, *, path: epath.Path, split: dict[str, Any], layout: RecordLayout):
        """split: its entry in the manifest."""
        self.num_examples = split["examples"]
        self._layout, self._path, self._shards = layout, path, split["shards"]
        self._ends = np.cumsum([shard["records"] for shard in self._shards], dtype=np.int64)
        self._remote = storage.is_remote(path)
        files = [f"{path / shard['file']}[0:{shard['records']}]" for shard in split["shards"]]
        self._records = array_record_data_source.ArrayRecordDataSource(files) if files else None

    def read(self, indices: np.ndarray) -> Batch:
        """Reads records; see RecordLayout.unpack for the arrays.

        Raises:
          IndexError: an index lies outside [0, num_examples).
          DamagedFileError: a record cannot be read; names the shard.
        """
        indices = check_indices(indices, self.num_examples)
        if self._records is None or not indices.size:
            return self._layout.unpack([])
        try:
            return self._layout.unpack(self._fetch(indices))
        except (RuntimeError, ValueError) as error:
            raise DamagedFileError(self._damage(indices) or f"{self._path}: {error}") from error

    def _fetch(self, indices: np.ndarray) -> Sequence[bytes]:
        """Reads records with one call, or one by one where that is faster.

        One call of ArrayRecord starts one thread per shard. From a local disk, a batch of 256 records of
        200 shards then takes five times as long as its records one by one.
        """
        assert self._records is not None
        if self._remote or len(indices) >= _MIN_RECORDS_PER_CALL * len(self._shards_of(indices)):
            return self._records.__getitems__(indices.tolist())
        return [self._records[index] for index in indices.tolist()]

    def _shards_of(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of the shards that hold `indices`."""
        return np.unique(np.searchsorted(self._ends, indices, side="right"))

    def _damage(self, indices: np.ndarray) -> str:
        """Problems of the shards that hold `indices`; "" if there are none."""
        problems = []
        for number in self._shards_of(indices):
            shard = self._shards[number]
            file = self._path / shard["file"]
            problems.append(file_problem(file, size=shard["bytes"], digest=shard["sha256"]))
        return "; ".join(f"{problem}; delete it and run again" for problem in problems if problem)


def open_functaset(path: epath.PathLike, *, field_digest: str | None) -> Functaset:
    """Opens a complete functaset.

    Args:
      path: its directory.
      field_digest: digest of the field that will decode it; None accepts any field.
    Raises:
      ValueError: there is no complete functaset; the manifest is damaged or of another format version;
        a shard is missing or has a wrong size; another field made the functaset; or there are more
        shards than this process may open.
    """
    path = epath.Path(path)
    manifest = read_manifest(path)
    if problem := field_problem(path, manifest, field_digest):
        raise ValueError(problem)
    if not storage.is_remote(path):
        storage.allow_open_files(len(manifest.shards))  # shards stay open
    problems = storage.thread_map(
        lambda shard: file_problem(path / shard["file"], size=shard["bytes"]), manifest.shards
    )
    for problem in filter(None, problems):
        raise ValueError(f"{problem}; run the encode stage again")
    return Functaset(path=path, manifest=manifest)


def file_problem(
    file: epath.Path, *, size: int | None = None, digest: str | None = None
) -> str | None:
    """Reports a file that is missing or has another size or digest than given.

    The size takes one request; the digest reads the whole file.
    """
    try:
        if size is not None and (actual := file.stat().length) != size:
            return f"{file} has {actual} bytes, not {size}"
        if digest is not None and (found := digests.file_digest(file)) != digest:
            return f"{file} is damaged: its digest is {found}, not {digest}"
    except FileNotFoundError:
        return f"{file} is missing"
    return None


def field_problem(path: epath.Path, manifest: Manifest, field_digest: str | None) -> str | None:
    """Reports a functaset that another field made; `field_digest` None accepts any field."""
    if field_digest in (None, manifest.field_digest):
        return None
    return (
        f"{path} was encoded with the field {manifest.field_digest}, this field is {field_digest}; "
        "encode again with this field, or use the field that made the functaset"
    )


def read_manifest(path: epath.PathLike) -> Manifest:
    """Reads the manifest in the directory of a functaset.

    Raises:
      ValueError: there is none, so the functaset is not complete; or it is damaged or of another format
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
        raise ValueError(f"{file} is damaged ({error!r}); run the encode stage again") from error
    if version != format.FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, but this program reads version "
            f"{format.FORMAT_VERSION}; run the encode stage again"
        )
    actual = digests.json_digest(values | {"digest": ""})
    if digest != actual:
        raise ValueError(
            f"{file} is damaged: its digest is {actual}, not {digest}; run the encode stage again"
        )
    return Manifest(**values)
