"""Read timeout and prefetching: warns while a read is slow, fails when it hangs.

A read from a dead disk or file system does not fail; it never returns. A thread waits for it, so that
the thread that trains can warn and, in the end, stop.
"""

import collections
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

from functa.runtime.errors import InputTimeoutError

_WARN_SECONDS = 60.0
# Half of the time for which processes on CPUs wait for each other in a collective: the other
# processes must still be alive to learn of the failure.
_TIMEOUT_SECONDS = 900.0
_END: Any = object()

_log = logging.getLogger("functa")
Item = TypeVar("Item")


def with_timeout(items: Iterator[Item], name: Callable[[int], str]) -> Iterator[Item]:
    """Yields `items`; a separate thread reads one item ahead.

    Args:
      items: an iterator whose `next` may hang.
      name: number of an item, from 0 -> its name in messages, such as "step 13".
    Raises:
      InputTimeoutError: an item did not arrive within _TIMEOUT_SECONDS.
    """
    pool = futures.ThreadPoolExecutor(1, thread_name_prefix="input")
    try:
        future = pool.submit(next, items, _END)
        for number in itertools.count():
            item = _wait(future, name(number))
            if item is _END:
                return
            future = pool.submit(next, items, _END)
            yield item
    finally:
        pool.shutdown(wait=False)


def _wait(future: futures.Future[Item], name: str) -> Item:
    begin = time.monotonic()
    while True:
        left = _TIMEOUT_SECONDS - (time.monotonic() - begin)
        futures.wait([future], timeout=max(0.0, min(_WARN_SECONDS, left)))
        if future.done():
            return future.result()
        waited = time.monotonic() - begin
        if waited >= _TIMEOUT_SECONDS:
            raise InputTimeoutError(
                f"no input of {name} for {waited:.0f} s: a read of the data hangs. Check its disk or "
                "file system; then the same command resumes the run"
            )
        _log.warning("has been waiting for input of %s for %.0f s", name, waited)


def prefetch(
    tasks: Iterable[Callable[[], Item]], *, threads: int, queue_size: int = 0
) -> Generator[Item, None, None]:
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
