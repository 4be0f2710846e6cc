"""Where files lie: which paths are of an object store, many files at once, locks on local ones, and a full disk told
the same way by all that writes."""

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

# gcsfs remembers what folders hold, but other processes write there too.
fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False

# By name: what writes to disks only need not import gcsfs.
for _name in ("gs", "gcs"):
    fsspec.register_implementation(_name, "functa.runtime.gcs_retry.StoreFileSystem", clobber=True)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_ONCE = 32  # requests to an object store under way, where each is a round trip
_OTHER_HANDLES = 256  # open files that a program has besides those it asks room for

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_remote(path: epath.PathLike) -> bool:
    """Whether it is in an object store (gs://...): whole objects, no appending, no locks of the system."""
    return "://" in str(path)


def thread_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """function(item) of all items, in their order, several at a time: for what waits for a store."""
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, if need be, so that `count` may be open together, and others beside
    them: of an image data set and of a functaset, which do not know of each other.

    Raises:
      ValueError: the system's hard limit is below `count`; names both.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, wanted = count + _OTHER_HANDLES, 2 * count + _OTHER_HANDLES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{count} files must be open together, and this process may open {hard}: raise its hard limit "
            "(ulimit -Hn), or make fewer and larger shards (of a functaset, config.encode.shard_megabytes)"
        )
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


@contextlib.contextmanager
def locked(path: epath.PathLike) -> Iterator[None]:
    """Keeps a second program out while this one runs, by a local file that the system locks.

    The lock of a program that is killed is open again.

    Raises:
      ValueError: another program holds it.
    """
    path = epath.Path(path)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"another program is at work in {path.parent} ({file.read().strip()}); wait for it or stop it"
            ) from error
        if not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
            # Its owner has removed it since it was opened here: this lock keeps nobody out.
            raise ValueError(
                f"another program was at work in {path.parent} until just now; try again"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextlib.contextmanager
def explain_disk_full(path: epath.PathLike, needed: int) -> Iterator[None]:
    """Turns the many errors of a full disk into OSError with the path and the bytes needed.

    Python raises OSError, ArrayRecord RuntimeError and TensorStore ValueError, each with a text of
    its own. Other errors pass unchanged.

    Args:
      path: what is being written.
      needed: bytes, about.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        for code in FULL:
            told = os.strerror(code) in str(error) or f"os_error_code='{code}'" in str(error)
            if getattr(error, "errno", None) == code or told:
                raise OSError(
                    code,
                    f"{os.strerror(code)}: about {needed:,} bytes are needed; what is complete stays "
                    "valid, make room and run the same command again",
                    str(path),
                ) from error
        raise
