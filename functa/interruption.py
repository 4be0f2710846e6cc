"""Stopping on purpose: SIGTERM, Ctrl-C, or a cluster's notice that the machine will be taken."""

import signal
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

_LONGEST = 3600  # seconds between two questions
# Above every number of a step, and with the seconds of a run still below 2**31, which JAX takes.
_ALONE = 10**9


class Interrupted(Exception):
    """The run was asked to stop; everything needed to go on is saved."""


class Interruption:
    """Asks, at points where stopping is safe, whether to stop.

    In one process a handler of SIGTERM and SIGINT sets a flag; a second signal ends the program.
    With jax.distributed the runtime's own notice is used: whichever process gets SIGTERM, it becomes
    true on every one at the same number. Numbers are steps where processes step together, and
    seconds since this was made where each works alone; all make it when they have just found each
    other, and what their clocks show may differ.
    """

    def __init__(self):
        self._received = False
        self._asked = 0  # the last number
        self._begin = time.monotonic()
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once

    def received(self) -> bool:
        """Whether any process was asked, a second or two ago; for work that processes do alone."""
        if jax.process_count() > 1:
            now = _ALONE + int(time.monotonic() - self._begin)
            # A notice at the end of a training counts from its last step.
            first = self._asked + 1
            for number in (first, *range(max(first + 1, now - _LONGEST), now + 1)):
                self._received |= self.requested(number)
        return self._received

    def requested(self, step: int) -> bool:
        """Whether to save and stop; every process must ask at the same steps."""
        if jax.process_count() == 1:
            return self._received
        self._asked = step
        return multihost_utils.reached_preemption_sync_point(step)
