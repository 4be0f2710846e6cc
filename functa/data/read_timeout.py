"""Read timeout and prefetching: warns while a read is slow, fails when it hangs.

A read from a dead disk or file system does not fail; it never returns. A thread waits for it, so that
the thread that trains can warn and, in the end, stop.
"""

import collections
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

from functa.runtime.errors import InputTimeoutError

_WARN_SECONDS = 60.0
# Half of the time for which processes on CPUs wait for each other in a collective: the other
# processes must still be alive to learn of the failure.
_TIMEOUT_SECONDS = 900.0

_log = logging.getLogger("functa")
Item = TypeVar("Item")


def with_timeout(items: Iterator[Item], name: Callable[[int], str]) -> Iterator[Item]:
    """Yields `items`; a thread of its own reads one item ahead.

    Args:
      items: an iterator whose `next` may hang.
      name: number of an item, from 0 -> its name in messages, such as "step 13".
    Raises:
      InputTimeoutError: an item did not arrive within _TIMEOUT_SECONDS.
    """
    requests: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def serve() -> None:
        while requests.get():
            try:
                answers.put((next(items), None))
            except BaseException as error:  # raised again by the thread that needs the item
                answers.put((None, error))
                return

    threading.Thread(target=serve, name="input", daemon=True).start()
    requests.put(True)
    try:
        for number in itertools.count():
            item, error = _wait(answers, name(number))
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            requests.put(True)
            yield item
    finally:
        requests.put(False)


def prefetch(
    tasks: Iterable[Callable[[], Item]], *, threads: int, queue_size: int = 0
) -> Iterator[Item]:
    """Yields the results of `tasks` in order, computed by threads.

    Closing the iterator does not wait for the threads, since one of them may hang.

    Args:
      queue_size: largest number of tasks that are computed before their result is needed; at least,
        and by default, one per thread.
    """
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="input")
    pending: collections.deque[futures.Future[Item]] = collections.deque()
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) >= max(threads, queue_size):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _wait(answers: queue.SimpleQueue, name: str) -> tuple:
    begin = time.monotonic()
    while True:
        left = _TIMEOUT_SECONDS - (time.monotonic() - begin)
        try:
            return answers.get(timeout=max(0.0, min(_WARN_SECONDS, left)))
        except queue.Empty:
            waited = time.monotonic() - begin
        if waited >= _TIMEOUT_SECONDS:
            raise InputTimeoutError(
                f"no input of {name} for {waited:.0f} s: a read of the data hangs. Check its disk or "
                "file system; then the same command resumes the run"
            )
        _log.warning("has been waiting for input of %s for %.0f s", name, waited)
