"""Writing images as a TFDS data set, shard by shard, so that a killed writer loses little.

    DATA_DIR/NAME/1.0.0.lock                          held while a program is at work
                  1.0.0.unfinished/plan.json          what the set is made from
                                   parts/SHARD.json   what a finished shard holds
                                   set/SHARD          the shards, and at last the metadata
                  1.0.0                               `set`, renamed when all is complete

A shard is a range of the plan: of a split's images in their order, the damaged ones included, which
are then left out. So each can be made by itself, every image is read once, and what was killed goes
on to the same bytes.
"""

import contextlib
import errno
import functools
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent import futures

from etils import epath

from functa.data.prepare import shards as image_shards
from functa.data.prepare import sources, tfds_metadata
from functa.data.read_timeout import ordered_results
from functa.runtime import config, storage

_AHEAD = 4  # images for each thread, held in memory until it is their turn to be written
_MADE_BY = ("array_record", "pillow")  # another version may write other bytes
_PLAN = {
    "source": "source or arguments",
    "splits": "number of images or shards",
    "made_by": f"version of {' or '.join(_MADE_BY)}",
}


class IncompleteWriteError(OSError):
    """Writing has failed, and finished shards are kept: the same command goes on."""


def refuse_existing(name: str, data_dir: epath.Path) -> None:
    """Raises FileExistsError if the data set is there."""
    target, folder = _places(name, data_dir)
    if not target.exists():
        return
    # A run that was killed when all was done but to remove this.
    if not (folder / image_shards.SET).exists():
        shutil.rmtree(folder, ignore_errors=True)
    raise FileExistsError(
        f"{target} exists and is left as it is; delete it first, or choose another NAME or "
        "--data_dir"
    )


def write(
    archive: sources.Archive,
    *,
    name: str,
    data_dir: epath.Path,
    jobs: int,
    report: sources.Report,
) -> dict[str, tfds_metadata.Contents]:
    """Writes DATA_DIR/NAME/1.0.0, or goes on with it; the same archive always gives the same bytes.

    Args:
      jobs: threads that read and check images.
    Returns:
      What each split holds, and what was left out of it.
    Raises:
      FileExistsError: the data set is there.
      ValueError: another program is at work on it, it was begun from something else, or no image
        of a split is whole.
      IncompleteWriteError: it cannot be written, such as on a full disk; some shards are.
      OSError, RuntimeError: it cannot be written, and nothing is.
    """
    target, folder = _places(name, data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f"{target.name}.lock"
    with storage.locked(lock):
        try:
            refuse_existing(name, data_dir)  # another program may just have made it
            shards = image_shards.plan_shards(archive, name)
            with _keeping(folder):
                _agree(folder, archive, shards)
                parts = _all_parts(folder, archive, shards, jobs=jobs, report=report)
                splits = {
                    split: tfds_metadata.together(
                        [p.contents for p in parts if p.shard.split == split]
                    )
                    for split in archive.splits
                }
                tfds_metadata.write_metadata(folder / image_shards.SET, archive, splits)
                (folder / image_shards.SET).rename(target)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.unlink(missing_ok=True)
    return splits


def _places(name: str, data_dir: epath.Path) -> tuple[epath.Path, epath.Path]:
    target = data_dir / name / tfds_metadata.VERSION
    return target, target.parent / f"{target.name}.unfinished"


def _agree(
    folder: epath.Path, archive: sources.Archive, shards: Sequence[image_shards.Shard]
) -> None:
    """Writes the plan, or compares it with that of an earlier run."""
    plan = {
        "source": archive.digest,
        "splits": {
            split: [len(content.labels), sum(shard.split == split for shard in shards)]
            for split, content in archive.splits.items()
        },
        "made_by": {package: importlib.metadata.version(package) for package in _MADE_BY},
    }
    file = folder / "plan.json"
    if not _has_parts(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        held = json.loads(file.read_text())
        others = [what for key, what in _PLAN.items() if held.get(key) != plan[key]]
        if others:
            raise ValueError(
                f"{folder} was begun with another {', another '.join(others)}. Give the same "
                "command as then to go on, or delete the folder"
            )
    for place in (folder, folder / image_shards.SET, folder / image_shards.PARTS):
        place.mkdir(parents=True, exist_ok=True)
    config.write_json(file, plan)


def _has_parts(folder: epath.Path) -> bool:
    return any((folder / image_shards.PARTS).glob("*.json"))


@contextlib.contextmanager
def _keeping(folder: epath.Path) -> Iterator[None]:
    """Removes the folder after a failure that leaves nothing to go on with."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, sources.UnusableSourceError) or not _has_parts(folder):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if isinstance(error, OSError | RuntimeError):
            raise IncompleteWriteError(f"{error}. {folder} keeps what is finished") from error
        raise


def _all_parts(
    folder: epath.Path,
    archive: sources.Archive,
    shards: Sequence[image_shards.Shard],
    *,
    jobs: int,
    report: sources.Report,
) -> list[image_shards.Part]:
    """In the order of `shards`, those that stand finished and those that are made now."""
    with futures.ThreadPoolExecutor(jobs) as pool:
        found = pool.map(functools.partial(image_shards.finished, folder), shards)
        parts = {shard: part for shard, part in zip(shards, found, strict=True) if part}
    for part in parts.values():
        _tell(part, "finished earlier", report)
    missing = [shard for shard in shards if shard not in parts]
    _require_space(folder, missing)
    for part, seconds in _make(folder, archive, missing, jobs=jobs):
        shard = part.shard
        _tell(part, f"{(shard.stop - shard.start) / seconds:,.0f} images/s", report)
        parts[shard] = part
    return [parts[shard] for shard in shards]


def _tell(part: image_shards.Part, how: str, report: sources.Report) -> None:
    for name, reason in part.contents.damaged:
        report.found(name, f"left out: {reason}")
    report.found(part.shard.file, f"{part.contents.lengths[0]:,} images, {how}")


def _require_space(folder: epath.Path, shards: Sequence[image_shards.Shard]) -> None:
    needed, free = sum(shard.num_bytes for shard in shards), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{len(shards)} shards need about {needed:,} bytes, {free:,} are free; make room or "
            "choose another --data_dir",
            str(folder),
        )


def _make(
    folder: epath.Path,
    archive: sources.Archive,
    shards: Sequence[image_shards.Shard],
    *,
    jobs: int,
) -> Iterator[tuple[image_shards.Part, float]]:
    """Parts, and the seconds in which each was written.

    By threads, since reading, decoding and hashing let go of the interpreter; while a shard is hashed the next is
    made.
    """
    reads = (
        functools.partial(archive.splits[shard.split].read, k)
        for shard in shards
        for k in range(shard.start, shard.stop)
    )
    with futures.ThreadPoolExecutor(1) as finisher, futures.ThreadPoolExecutor(jobs) as pool:
        samples = ordered_results(pool, reads, jobs * _AHEAD)
        finishing: tuple[futures.Future[image_shards.Part], float] | None = None
        for shard in shards:
            labels = archive.splits[shard.split].labels[shard.start : shard.stop]
            begin = time.monotonic()
            # Labels first: zip would take one sample too many before it sees the end of them.
            held = image_shards.write(folder, shard, zip(labels.tolist(), samples, strict=False))
            seconds = time.monotonic() - begin
            if finishing is not None:
                yield finishing[0].result(), finishing[1]
            part = image_shards.Part(shard, held)
            finishing = finisher.submit(image_shards.finish, folder, part), seconds
        if finishing is not None:
            yield finishing[0].result(), finishing[1]
