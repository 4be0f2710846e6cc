"""Stopping on purpose: SIGTERM, Ctrl-C, or a cluster's notice that the machine will be taken."""

import signal
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

from functa.runtime import processes


class PreemptionWatcher:
    """Asks, at points where stopping is safe, whether to stop.

    In one process a handler of SIGTERM and SIGINT sets a flag; a second signal ends the program.

    With jax.distributed the runtime's own notice is used. Every process asks it with rising numbers; once any of
    them gets SIGTERM, they agree on a number above all that were asked so far, and the answer is yes to that
    number alone. So each process asks every number once, in order, over the whole run: after `align` one a step,
    in which all are together, and one a second of its own clock where each works alone.
    """

    def __init__(self):
        self._received = False
        self._asked = 0  # the last number
        self._alone_from = 0, time.monotonic()  # number and time from which seconds are counted
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once

    def _ask_to(self, last: int) -> bool:
        """Asks every number up to `last`; whether the answer to one of them, or before, was yes."""
        for number in range(self._asked + 1, last + 1):
            self._received |= multihost_utils.reached_preemption_sync_point(number)
            self._asked = number
        return self._received

    def align(self) -> None:
        """Before work in which all processes take each step together; every process must call it."""
        if jax.process_count() > 1:
            asked = processes.gather(str(self._asked), "align")
            self._ask_to(max(map(int, asked)) + 1)

    def requested(self, step: int) -> bool:
        """Whether to save and stop; after `align` every process must ask at the same steps."""
        del step  # only that there is one more
        if jax.process_count() == 1:
            return self._received
        stop = self._ask_to(self._asked + 1)
        self._alone_from = self._asked, time.monotonic()
        return stop

    def received(self) -> bool:
        """Whether any process was asked, a second or two ago; for work that processes do alone."""
        if jax.process_count() == 1:
            return self._received
        number, since = self._alone_from
        return self._ask_to(number + int(time.monotonic() - since))
