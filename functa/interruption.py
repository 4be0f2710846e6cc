"""Stopping on purpose: SIGTERM, Ctrl-C, or a cluster's notice that the machine will be taken."""

import signal
from types import FrameType

import jax


class Interrupted(Exception):
    """The run was asked to stop; everything needed to go on is saved."""


class Interruption:
    """Asks, at points where stopping is safe, whether to stop.

    In one process a handler of SIGTERM and SIGINT sets a flag; a second signal ends the program.
    With jax.distributed the runtime's own notice is used, which becomes true on every process at
    the same step.
    """

    def __init__(self):
        self._received = False
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once

    def received(self) -> bool:
        """Whether this process was asked; for work that processes do alone."""
        return self._received

    def requested(self, step: int) -> bool:
        """Whether to save and stop; every process must ask at the same steps."""
        if jax.process_count() == 1:
            return self._received
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
