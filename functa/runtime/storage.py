"""Local disks and object stores: concurrent requests, open files, file locks and full disks."""

import contextlib
import errno
import fcntl
import os
import resource
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import fsspec
from etils import epath

# Other processes write to the same directories, so cached listings would be stale.
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False

# Registered by name, so that programs on local disks need not import gcsfs.
for _name in ("gs", "gcs"):
    fsspec.register_implementation(
        _name, "functa.runtime.gcs_retry.RetryingFileSystem", clobber=True
    )

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONCURRENT_REQUESTS = 32
_RESERVED_FILES = 256  # open files of a program besides data sets

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store (gs://...), which has no appending and no file locks."""
    return "://" in str(path)


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[function(item) for item in items] in threads, for requests to an object store."""
    with futures.ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        return list(pool.map(function, items))


def allow_open_files(count: int) -> None:
    """Raises this process's soft limit of open files to hold `count` files of a data set open.

    The new limit has room for a second data set of that size.

    Raises:
      ValueError: the hard limit is too low; the message names both numbers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required, target = count + _RESERVED_FILES, 2 * count + _RESERVED_FILES
    if soft == resource.RLIM_INFINITY or soft >= target:
        return
    if hard != resource.RLIM_INFINITY and hard < required:
        raise ValueError(
            f"{count} files must be open at the same time, but the limit of this process is {hard}: "
            "raise the hard limit (ulimit -Hn), or write fewer and larger shards (functasets: "
            "config.encode.shard_megabytes)"
        )
    limit = target if hard == resource.RLIM_INFINITY else min(target, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


@contextlib.contextmanager
def locked(path: epath.PathLike) -> Iterator[None]:
    """Holds an exclusive lock on a local file. The system releases it if the program is killed.

    Raises:
      ValueError: another program holds the lock.
    """
    path = epath.Path(path)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"another program is running in {path.parent} ({file.read().strip()}); wait for it or stop it"
            ) from error
        if not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
            # The owner removed the file after it was opened here, so this lock excludes nobody.
            raise ValueError(f"another program has just ended in {path.parent}; try again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def explain_disk_full(path: epath.PathLike, required: int) -> Iterator[None]:
    """Converts errors of a full disk to OSError with the path and the required bytes.

    Python raises OSError, ArrayRecord RuntimeError and TensorStore ValueError. Other errors pass.

    Args:
      path: the file or directory that the body writes.
      required: approximate number of bytes.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        for code in DISK_FULL_ERRNOS:
            in_text = os.strerror(code) in str(error) or f"os_error_code='{code}'" in str(error)
            if getattr(error, "errno", None) == code or in_text:
                raise OSError(
                    code,
                    f"{os.strerror(code)}: about {required:,} bytes are required; make room and run "
                    "the same command again, which keeps all complete files",
                    str(path),
                ) from error
        raise
