"""Input that is waited for: told while it takes long, given up where it hangs.

A read from a dead disk or file system does not fail, it does not come back. A thread waits for it,
so that the one that trains can tell and, in the end, stop.
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

_TELL_SECONDS = 60.0
# Half of what processes on CPUs wait for each other in a collective; the others must still be there to be told.
_HUNG_SECONDS = 900.0

_log = logging.getLogger("functa")
Item = TypeVar("Item")


def patient(items: Iterator[Item], name: Callable[[int], str]) -> Iterator[Item]:
    """`items`, read one ahead by a thread of their own.

    Args:
      name: number of an item, from 0 -> what is waited for: "step 13".
    Raises:
      InputTimeoutError: one did not come in _HUNG_SECONDS.
    """
    asked: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def serve() -> None:
        while asked.get():
            try:
                answers.put((next(items), None))
            # Of whatever kind: it is raised where the item is wanted.
            except BaseException as error:
                answers.put((None, error))
                return

    threading.Thread(target=serve, name="input", daemon=True).start()
    asked.put(True)
    try:
        for number in itertools.count():
            item, error = _wait(answers, name(number))
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            asked.put(True)
            yield item
    finally:
        asked.put(False)


def in_order(
    pool: futures.Executor, tasks: Iterable[Callable[[], Item]], ahead: int
) -> Iterator[Item]:
    """Results in the order of the tasks, at most `ahead` of which are begun before they are asked for."""
    begun: collections.deque[futures.Future[Item]] = collections.deque()
    for task in tasks:
        begun.append(pool.submit(task))
        if len(begun) >= ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def read_ahead(tasks: Iterable[Callable[[], Item]], *, threads: int) -> Iterator[Item]:
    """Results in the order of the tasks, by threads that nobody waits for in the end: one may hang."""
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="input")
    try:
        yield from in_order(pool, tasks, threads)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _wait(answers: queue.SimpleQueue, name: str) -> tuple:
    """The next answer."""
    begin = time.monotonic()
    while True:
        left = _HUNG_SECONDS - (time.monotonic() - begin)
        try:
            return answers.get(timeout=max(0.0, min(_TELL_SECONDS, left)))
        except queue.Empty:
            waited = time.monotonic() - begin
        if waited >= _HUNG_SECONDS:
            raise InputTimeoutError(
                f"no input of {name} for {waited:.0f} s: a read of the data hangs (its disk or file system may "
                "be away); mend that, and the same command goes on from what is saved"
            )
        _log.warning("has been waiting for input of %s for %.0f s", name, waited)
