"""Requests to stop: SIGTERM, Ctrl-C, or the notice that a cluster will reclaim the machine."""

import signal
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

from functa.runtime import processes


class PreemptionWatcher:
    """Polls for requests to stop, at points where stopping is safe.

    In one process, a handler of SIGTERM and SIGINT sets a flag. A second signal ends the program.

    In several processes, JAX's preemption service is polled with increasing numbers. After one
    process receives SIGTERM, the service selects a number that no process has polled yet, and
    answers yes to that number only. Therefore every process polls every number, in order: one per
    step where processes work in lockstep, which `synchronize` prepares, and otherwise one per second.
    """

    def __init__(self, *, handle_signals: bool = True):
        self._requested = False
        self._last_number = 0
        self._clock_origin = 0, time.monotonic()  # number and time from which seconds count
        if handle_signals and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle_signal)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the program

    def _poll_up_to(self, last: int) -> bool:
        """Polls every number up to `last`. Returns whether a stop has been requested by then."""
        for number in range(self._last_number + 1, last + 1):
            self._requested |= multihost_utils.reached_preemption_sync_point(number)
            self._last_number = number
        return self._requested

    def synchronize(self) -> None:
        """Prepares work in lockstep. All processes must call it."""
        if jax.process_count() > 1:
            numbers = processes.gather_texts(str(self._last_number), "preemption")
            self._poll_up_to(max(map(int, numbers)) + 1)

    def should_stop_at(self, step: int) -> bool:
        """Whether to save and stop, for work in lockstep: all processes must poll the same steps."""
        del step  # the service counts polls
        if jax.process_count() == 1:
            return self._requested
        stop = self._poll_up_to(self._last_number + 1)
        self._clock_origin = self._last_number, time.monotonic()
        return stop

    def should_stop(self) -> bool:
        """Whether to stop, for work that processes do independently; up to two seconds late."""
        if jax.process_count() == 1:
            return self._requested
        number, start = self._clock_origin
        return self._poll_up_to(number + int(time.monotonic() - start))
