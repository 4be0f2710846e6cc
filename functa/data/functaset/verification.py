"""Whether a functaset is as it was written: all of it, or a sample where reading all would take hours."""

from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.reader import (
    Manifest,
    digest_problem,
    field_problem,
    read_manifest,
    size_problem,
)

_SHARDS_AT_ONCE = 4
_BLOCK_BYTES = 1 << 22  # of records decoded at once; a dozen times as much memory a shard


class Verified(NamedTuple):
    """What was looked at, and what is wrong.

    problems: one line each, with the file; empty: what was looked at is as it was written.
    shards, records: of the set, as its manifest has them.
    digests: shards of which all bytes were read and their digest compared.
    decoded: records that were decoded; they are of all shards.
    """

    problems: list[str]
    shards: int
    records: int
    digests: int
    decoded: int


def verify(path: epath.PathLike, *, field_digest: str | None, fraction: float) -> Verified:
    """Reads a functaset again, or a part of it.

    Always checked are the manifest, the files that TFDS reads, that all shards are there, have their sizes and are no
    others. A `fraction` below 1 leaves out the digests of other shards and the records of all shards, at least one
    of which is read of each. Which ones follows from the manifest's digest: the same ones every time.

    Args:
      field_digest: of the field that the set should be of; None: not compared.
      fraction: of the shards whose digests are compared and of the records that are decoded, in (0, 1].
    Raises:
      ValueError: an impossible fraction.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"a fraction of {fraction} of a functaset: it must be above 0 and at most 1"
        )
    path = epath.Path(path)
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return Verified([str(error)], 0, 0, 0, 0)
    problems = _of_manifest(path, manifest, field_digest)
    shards, seed = manifest.shards, int(manifest.digest.removeprefix("sha256:")[:16], 16)
    hashed = set(_spread(len(shards), fraction, seed=seed).tolist())

    def look(number: int) -> tuple[list[str], int]:
        shard = shards[number]
        file = path / shard["file"]
        problem = size_problem(file, shard["bytes"])
        if problem is None and number in hashed:
            problem = digest_problem(file, shard["sha256"])
        if problem is not None:  # its records are not worth a look
            return [problem], 0
        chosen = _spread(shard["records"], fraction, seed=seed + 1 + number)
        return _of_records(file, shard, manifest.layout, chosen), len(chosen)

    decoded = 0
    with futures.ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for found, count in pool.map(look, range(len(shards))):
            problems += found
            decoded += count
    known = {shard["file"] for shard in shards}
    for file in sorted(path.iterdir()):
        if file.name.startswith(f"{format.NAME}-") and file.name not in known:
            problems.append(f"{file} is not a shard of this set")
    records = sum(shard["records"] for shard in shards)
    return Verified(problems, len(shards), records, len(hashed), decoded)


def _of_manifest(path: epath.Path, manifest: Manifest, field_digest: str | None) -> list[str]:
    """Problems of the field, of counts, and of the files that TFDS reads."""
    problems: list[str | None] = []
    if field_digest is not None and field_digest != manifest.field_digest:
        problems.append(field_problem(path, manifest, field_digest))
    problems += [digest_problem(path / name, digest) for name, digest in manifest.files.items()]
    for name, split in manifest.splits.items():
        total = sum(shard["records"] for shard in split["shards"])
        if total != split["examples"]:
            problems.append(
                f"{path / format.MANIFEST}: {name} has {split['examples']} examples, its"
                f" shards {total}"
            )
    return [problem for problem in problems if problem is not None]


def _spread(count: int, fraction: float, *, seed: int) -> np.ndarray:
    """A part of 0 ... count - 1, rising: one at random of each of equally many."""
    most = int(np.ceil(fraction * count))
    edges = np.arange(most + 1, dtype=np.int64) * count // max(1, most)
    # Raw bits: the same in every NumPy.
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(most)
    return edges[:-1] + (bits % np.diff(edges).astype(np.uint64)).astype(np.int64)


def _of_records(
    file: epath.Path, shard: dict[str, Any], layout: RecordLayout, chosen: np.ndarray
) -> list[str]:
    """The first problem of a shard's records: their number; one that is foreign, damaged or not finite; ids."""
    most = max(1, _BLOCK_BYTES // layout.record_bytes)
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        if (count := reader.num_records()) != shard["records"]:
            return [f"{file} has {count} records, not {shard['records']}"]
        for start in range(0, len(chosen), most):
            numbers = chosen[start : start + most]
            records = reader.read(numbers.tolist())
            try:
                block = layout.unpack(records)
            except ValueError:
                bad = [k for k, one in zip(numbers, records, strict=True) if not _fits(layout, one)]
                return [f"{file}: record {bad[0]} cannot be decoded"]
            latents = format.float32_latents(block)
            bad = ~np.isfinite(latents).all(axis=(1, 2, 3)) | ~np.isfinite(block["psnr"])
            if bad.any():
                k = int(np.argmax(bad))
                return [f"{file}: record {numbers[k]} (id {block['id'][k]}) is not finite"]
            least, greatest = block["id"].min(), block["id"].max()
            if not shard["ids"][0] <= least <= greatest <= shard["ids"][1]:
                return [f"{file}: ids {least} to {greatest}, not in {shard['ids']}"]
    except (ValueError, RuntimeError, IndexError) as error:
        return [f"{file}: a record cannot be read: {error}"]
    return []


def _fits(layout: RecordLayout, record: bytes) -> bool:
    try:
        layout.unpack([record])
    except ValueError:
        return False
    return True
