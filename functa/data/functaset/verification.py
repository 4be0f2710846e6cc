"""Verifies that a functaset holds the bytes that were written: all of them, or a sample."""

import math
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.reader import Manifest, field_problem, file_problem, read_manifest

_THREADS = 4  # shards that are read at the same time
_BLOCK_BYTES = 1 << 22  # records decoded at once; a thread needs a dozen times as much memory


class Verification(NamedTuple):
    """Result of a verification.

    Attributes:
      problems: one message per problem, with the file; empty: everything checked is as written.
      shards, records: how many the set has.
      hashed_shards: shards of which all bytes were read.
      decoded_records: records that were decoded, some of every shard; without problems only.
    """

    problems: list[str]
    shards: int
    records: int
    hashed_shards: int
    decoded_records: int


def verify(path: epath.PathLike, *, field_digest: str | None, fraction: float) -> Verification:
    """Verifies a functaset, or a sample of it.

    It always checks the manifest, the metadata that TFDS reads, and the names and sizes of all
    shards. A `fraction` below 1 hashes only that part of the shards and decodes only that part of
    the records of every shard, at least one each. The sample depends on the manifest's digest
    alone: it is the same every time.

    Args:
      field_digest: digest of the field that must have made the set; None: any.
      fraction: part of the shards to hash and of the records to decode, in (0, 1].
    """
    path = epath.Path(path)
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return Verification([str(error)], 0, 0, 0, 0)
    shards, seed = manifest.shards, int(manifest.digest.removeprefix("sha256:")[:16], 16)
    hashed = set(_sample(len(shards), fraction, seed=seed).tolist())

    def check(number: int) -> str | None:
        shard = shards[number]
        file = path / shard["file"]
        digest = shard["sha256"] if number in hashed else None
        if problem := file_problem(file, size=shard["bytes"], digest=digest):
            return problem
        records = _sample(shard["records"], fraction, seed=seed + 1 + number)
        return _record_problem(file, shard, manifest.layout, records)

    problems = _metadata_problems(path, manifest, field_digest)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        problems += filter(None, pool.map(check, range(len(shards))))
    names = {shard["file"] for shard in shards}
    problems += [
        f"{file} is not a shard of this functaset; delete it"
        for file in sorted(path.iterdir())
        if file.name.startswith(f"{format.NAME}-") and file.name not in names
    ]
    records = sum(shard["records"] for shard in shards)
    decoded = sum(math.ceil(fraction * shard["records"]) for shard in shards)
    return Verification(problems, len(shards), records, len(hashed), decoded)


def _metadata_problems(path: epath.Path, manifest: Manifest, field_digest: str | None) -> list[str]:
    """Problems of the field, of the counts in the manifest and of the files that TFDS reads."""
    problems = [field_problem(path, manifest, field_digest)]
    problems += [
        file_problem(path / name, digest=digest) for name, digest in manifest.files.items()
    ]
    for name, split in manifest.splits.items():
        total = sum(shard["records"] for shard in split["shards"])
        if total != split["examples"]:
            problems.append(
                f"{path / format.MANIFEST}: {name} has {split['examples']} examples, but its"
                f" shards have {total}"
            )
    return [problem for problem in problems if problem]


def _sample(count: int, fraction: float, *, seed: int) -> np.ndarray:
    """Sorted random sample of range(count): one index of each of equally long intervals."""
    size = math.ceil(fraction * count)
    edges = np.arange(size + 1, dtype=np.int64) * count // max(1, size)
    # Raw bits are the same in every version of NumPy.
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(size)
    return edges[:-1] + (bits % np.diff(edges).astype(np.uint64)).astype(np.int64)


def _record_problem(
    file: epath.Path, shard: dict[str, Any], layout: RecordLayout, sample: np.ndarray
) -> str | None:
    """First problem of a shard: record count, undecodable or non-finite records, ids."""
    block_size = max(1, _BLOCK_BYTES // layout.record_bytes)
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        if (count := reader.num_records()) != shard["records"]:
            return f"{file} has {count} records, not {shard['records']}"
        for start in range(0, len(sample), block_size):
            numbers = sample[start : start + block_size]
            try:
                block = layout.unpack(reader.read(numbers.tolist()))
            except format.LayoutError as error:
                return f"{file}: record {numbers[error.position]} cannot be decoded"
            latents = format.float32_latents(block)
            finite = np.isfinite(latents).all(axis=(1, 2, 3)) & np.isfinite(block["psnr"])
            if not finite.all():
                k = int(np.argmin(finite))
                return f"{file}: record {numbers[k]} (id {block['id'][k]}) is not finite"
            smallest, largest = block["id"].min(), block["id"].max()
            if not shard["ids"][0] <= smallest <= largest <= shard["ids"][1]:
                return f"{file}: ids {smallest} to {largest} are outside {shard['ids']}"
    except (ValueError, RuntimeError, IndexError) as error:
        return f"{file}: a record cannot be read: {error}"
    return None
