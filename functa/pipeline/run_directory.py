"""The directory of a run: who may write there, and what it was made with."""

import contextlib
import importlib.metadata
import logging
import os
import pathlib
import platform
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
from etils import epath
from ml_collections import ConfigDict

from functa.runtime import config as config_lib
from functa.runtime import memory, processes, storage
from functa.runtime.errors import StorageUnavailableError
from functa.training.progress import device_name

_RENEWAL_SECONDS = 10.0
_SEEN_SECONDS = 10.0  # network file systems remember for a while that a file was not there

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "numpy",
    "tensorflow-datasets",
    "clu",
    "ml_collections",
)


class LockLostError(Exception):
    """Another program is at work where this one was."""


def check(workdir: epath.Path) -> list[str]:
    """Why a work directory could not be written to; [] if it can, as far as looking tells."""
    if storage.is_remote(workdir):
        return _check_remote(workdir)
    existing = workdir.resolve()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [f"--workdir={workdir}: {existing} is not a directory that can be written to"]
    return []


def _check_remote(workdir: epath.Path) -> list[str]:
    scheme, _, rest = str(workdir).partition("://")
    if scheme != "gs":
        return [f"--workdir={workdir}: of object stores only gs:// is known"]
    bucket = epath.Path(f"gs://{rest.split('/')[0]}")
    try:
        if "/" in rest and bucket.exists():
            return []
    except StorageUnavailableError:
        raise  # nothing that a person can mend
    except Exception as error:  # gcsfs: no credentials, no network, a dozen types
        return [
            f"--workdir={workdir}: {bucket} cannot be reached ({type(error).__name__}: {error})"
        ]
    return [f"--workdir={workdir}: want gs://BUCKET/FOLDER with a bucket that exists"]


def check_shared(workdir: epath.Path, config: ConfigDict) -> list[str]:
    """Why this process does not see what process 0 has just written there; [] if it does."""
    path = workdir / "config.json"
    until = time.monotonic() + _SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return [
                f"{path}, which process 0 has written, is not there: --workdir must be a folder that all "
                "processes share"
            ]
        time.sleep(0.5)
    if config_lib.decisive(config_lib.load(workdir)) != config_lib.decisive(config):
        return [
            f"{path} is not the one that process 0 has written: --workdir must be a folder that all processes share"
        ]
    return []


@contextlib.contextmanager
def locked(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps a second program out of a work directory, which must exist, while this one runs.

    Raises:
      ValueError: another one is at work there.
    """
    if storage.is_remote(workdir):
        with _renewed(workdir / ".lock", say):
            yield
        return
    with storage.locked(workdir / ".lock"):
        yield


@contextlib.contextmanager
def _renewed(path: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """A lock in an object store: a file whose content its owner changes all the time.

    One that stays the same for _RENEWAL_SECONDS * 3 is of a program that was killed. Only changes count,
    so clocks of several machines need not agree.
    """

    def content() -> str:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        return ""

    if before := content():
        say(f"{path} is there: looking whether its owner is at work, {3 * _RENEWAL_SECONDS:.0f} s")
        if _changed(content, before) not in ("", before):
            raise ValueError(
                f"another program is at work in {path.parent} ({before}); wait for it or stop it"
            )
    # No clock in it, and no two alike: process numbers and host names of containers often are.
    me = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"
    path.write_text(f"{me}, 0")
    ended = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(path, me, content, ended), name="lock", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # Another's, who took this program for dead, is not this one's to remove.
        if content().startswith(me):
            path.unlink(missing_ok=True)


def _changed(content: Callable[[], str], before: str) -> str:
    """What a lock holds instead of `before`, or `before` after _RENEWAL_SECONDS * 3 with the store there."""
    since = time.monotonic()
    now = before
    while now == before and time.monotonic() - since < 3 * _RENEWAL_SECONDS:
        time.sleep(_RENEWAL_SECONDS / 3)
        begin = time.monotonic()
        now = content()
        if time.monotonic() - begin > _RENEWAL_SECONDS / 3:
            # The store was away, for the owner too.
            since = time.monotonic()
    return now


def _renew(path: epath.Path, me: str, content: Callable[[], str], ended: threading.Event) -> None:
    """Changes a lock of its own until `ended`; ends the program where it has lost it."""
    renewals = 0
    while not ended.wait(_RENEWAL_SECONDS):
        renewals += 1
        try:
            there = content()
            if there and not there.startswith(me):
                raise LockLostError(
                    f"another program has taken over {path.parent} ({there}): this one could not be told from a dead "
                    "one for a while"
                )
            path.write_text(f"{me}, {renewals}")
        except (LockLostError, StorageUnavailableError) as error:
            if ended.is_set():
                return
            # What the main thread does may take long to fail, or never do; nothing more may be written.
            line = f"{processes.this_process()}: {error}"
            logging.getLogger("functa").error("functa: %s", line)
            processes.announce(1, line)
            processes.end(1)
        # The store has many other ways to fail once.
        except Exception as error:
            logging.getLogger("functa").warning("%s could not be renewed: %s", path, error)


@contextlib.contextmanager
def logged(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """`say` that also writes to log.txt of the run, with the time before every line.

    What ends the run is written there too; to tell it elsewhere is left to who catches it.
    """
    path = workdir / "log.txt"
    remote = storage.is_remote(path)
    lines = [path.read_text()] if remote and path.exists() else []
    with contextlib.nullcontext() if remote else open(path, "a", buffering=1) as file:

        def write(line: str) -> None:
            line = _timed(line)
            if file is not None:
                file.write(line)
                return
            # Nothing can be appended to an object: it is written anew, now and then.
            lines.append(line)
            if time.monotonic() - copied[0] > _RENEWAL_SECONDS:
                copy()

        def copy() -> None:
            path.write_text("".join(lines))
            copied[0] = time.monotonic()

        copied = [0.0]
        handler = _Warnings(file, lines)
        logging.getLogger("functa").addHandler(handler)

        def say_and_write(line: str) -> None:
            say(line)
            write(line)

        try:
            yield say_and_write
        except BaseException as error:
            write(f"stopped by {type(error).__name__}: {error}")
            raise
        finally:
            logging.getLogger("functa").removeHandler(handler)
            if remote:
                copy()


def _timed(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n"


class _Warnings(logging.Handler):
    """What modules warn of, in the log of the run; in an object store with its next copy, since who warns may be the
    one that writes there."""

    def __init__(self, file: IO[str] | None, lines: list[str]):
        super().__init__(logging.WARNING)
        self._file, self._lines = file, lines

    def emit(self, record: logging.LogRecord) -> None:
        line = _timed(f"{record.levelname}: {record.getMessage()}")
        if self._file is not None:
            self._file.write(line)
        else:
            self._lines.append(line)


def environment() -> dict[str, Any]:
    """Versions, devices and commit, for the report."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "memory_gib": round(memory.host_bytes() / 2**30, 1),
        "devices": device_name(),
        "processes": jax.process_count(),
        "commit": _commit(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    """Model and usable cores of this machine's processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _commit() -> str:
    """What git calls this source tree, if it is one."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown (not a git checkout)"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"unknown ({error})"
    return described.stdout.strip() or "unknown (git describe failed)"
