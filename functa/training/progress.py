"""Speed and time left: what a person watching a run wants to know."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax


class Stopwatch:
    """Seconds of a stage over all its restarts, and rates that leave out compilation and
    evaluation.

    Args:
      seconds, active, steps: what `reading` gave when the stage was stopped.
    Attributes:
      first_step_seconds: from construction to the end of the first step, compilation included.
    """

    def __init__(self, *, seconds: float = 0.0, active: float = 0.0, steps: float = 0):
        self._before = seconds
        self._begin = time.monotonic()
        self._active = active  # seconds of steps after the first of a start, up to the last mark
        self._steps = steps
        self._mark: float | None = None
        self.first_step_seconds = 0.0

    def reading(self) -> dict[str, float]:
        """What a later Stopwatch goes on from."""
        return {"seconds": self.seconds(), "active": self._active, "steps": self._steps}

    def started(self) -> None:
        """The first step is done: rates count from here."""
        self._mark = time.monotonic()
        self.first_step_seconds = self._mark - self._begin

    def lap(self, steps: int) -> None:
        """`steps` more are done."""
        if self._mark is not None:
            now = time.monotonic()
            self._active += now - self._mark
            self._steps += steps
            self._mark = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training."""
        yield
        if self._mark is not None:
            self._mark = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._begin

    def steps_per_second(self) -> float:
        return self._steps / self._active if self._active else 0.0


def duration(seconds: float) -> str:
    """45 s, 3.2 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Bar:
    """Progress of counted work that is not a training loop: at most a line every `interval` seconds."""

    def __init__(self, say: Callable[[str], None], title: str, interval: float = 5.0):
        self._say, self._title, self._interval = say, title, interval
        self._begin = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._said < self._interval and done < total:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        left = f", {duration((total - done) / rate)} left" if rate and done < total else ""
        told = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        self._say(f"{self._title}  {done}/{total}  {told}/s{left}")


def device_name() -> str:
    """ "cpu x1" or "NVIDIA H100 x8": kind and number of devices of all processes."""
    return f"{jax.devices()[0].device_kind} x{jax.device_count()}"
