"""Lock of a run directory: keeps a second program from writing to it."""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from functa.runtime import distributed, processes, storage
from functa.runtime.errors import StorageUnavailableError

RENEWAL_SECONDS = 10.0


class LockLostError(Exception):
    """Another program has taken over the lock."""


@contextlib.contextmanager
def directory_lock(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run directory, which must exist.

    Raises:
      ValueError: another program holds it.
    """
    if storage.is_remote(workdir):
        with _object_lock(workdir / ".lock", say):
            yield
        return
    with storage.locked(workdir / ".lock"):
        yield


@contextlib.contextmanager
def _object_lock(path: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """A lock in an object store: an object whose content its owner keeps changing.

    An object that does not change for 3 * RENEWAL_SECONDS belongs to a program that was killed. Only
    changes count, so clocks of different machines need not agree.
    """

    def content() -> str:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        return ""

    if before := content():
        say(f"{path} exists: watching it for {3 * RENEWAL_SECONDS:.0f} s to see if its owner runs")
        if _wait_for_change(content, before) not in ("", before):
            raise ValueError(
                f"another program is running in {path.parent} ({before}); wait for it or stop it"
            )
    # Process ids and host names of containers are often equal, hence the random part.
    owner = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex[:8]}"
    path.write_text(f"{owner}, 0")
    released = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(path, owner, content, released), name="lock", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        # If another program took this one for dead, the lock is now that program's.
        if content().startswith(owner):
            path.unlink(missing_ok=True)


def _wait_for_change(content: Callable[[], str], before: str) -> str:
    """The content of a lock once it differs from `before`, or `before` after 3 * RENEWAL_SECONDS."""
    since = time.monotonic()
    now = before
    while now == before and time.monotonic() - since < 3 * RENEWAL_SECONDS:
        time.sleep(RENEWAL_SECONDS / 3)
        begin = time.monotonic()
        now = content()
        if time.monotonic() - begin > RENEWAL_SECONDS / 3:
            # The store did not answer for a while, so the owner could not renew the lock either.
            since = time.monotonic()
    return now


def _renew(
    path: epath.Path, owner: str, content: Callable[[], str], released: threading.Event
) -> None:
    """Renews a lock until it is released. Ends the program if the lock is lost."""
    renewals = 0
    while not released.wait(RENEWAL_SECONDS):
        renewals += 1
        try:
            current = content()
            if current and not current.startswith(owner):
                raise LockLostError(
                    f"another program has taken over {path.parent} ({current}), because this one did not renew its "
                    "lock in time"
                )
            path.write_text(f"{owner}, {renewals}")
        except (LockLostError, StorageUnavailableError) as error:
            if released.is_set():
                return
            # The main thread may take long to fail, and must not write anything more.
            line = f"{processes.process_name()}: {error}"
            logging.getLogger("functa").error("functa: %s", line)
            distributed.announce_exit(1, line)
            distributed.exit_process(1)
        except Exception as error:  # object stores raise many types for temporary failures
            logging.getLogger("functa").warning("%s could not be renewed: %s", path, error)
