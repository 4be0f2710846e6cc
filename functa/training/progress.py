"""Speed and remaining time of training and of other counted work."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

_RELIABLE_SECONDS = 5.0
_LINE_INTERVAL = 5.0  # seconds between lines where there is no terminal
_TRAINING_BAR = "{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}  {postfix}"


class Stopwatch:
    """Time and speed of a stage over all its restarts.

    Speed excludes compilation, evaluation and checkpoints.

    Args:
      seconds, active_seconds, steps: `reading` of the previous process; zeros for a new run.
    Attributes:
      earlier_seconds: time of the processes before this one.
      first_step_seconds: time from construction to the end of the first step, 0 before that.
    """

    def __init__(self, *, seconds: float = 0.0, active_seconds: float = 0.0, steps: int = 0):
        self.earlier_seconds = seconds
        self._start = time.monotonic()
        self._active_seconds = active_seconds
        self._steps = steps
        self._lap_start: tuple[int, float] | None = None  # step and time
        self.first_step_seconds = 0.0

    def reading(self) -> dict[str, float]:
        """Arguments of the Stopwatch that continues this one."""
        seconds = self.earlier_seconds + time.monotonic() - self._start
        return {"seconds": seconds, "active_seconds": self._active_seconds, "steps": self._steps}

    def start(self, step: int) -> None:
        """Starts to measure speed, after the first step of this process."""
        now = time.monotonic()
        self._lap_start = step, now
        self.first_step_seconds = now - self._start

    def lap(self, step: int) -> None:
        """Counts the steps up to `step`."""
        if self._lap_start is not None:
            last_step, last_time = self._lap_start
            now = time.monotonic()
            self._active_seconds += now - last_time
            self._steps += step - last_step
            self._lap_start = step, now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the body from the measured time."""
        yield
        if self._lap_start is not None:
            self._lap_start = self._lap_start[0], time.monotonic()

    def is_reliable(self) -> bool:
        """Whether the speed has been measured for long enough to predict the time left."""
        return self._active_seconds > _RELIABLE_SECONDS

    def steps_per_second(self) -> float:
        """Mean speed of all laps; 0 before the first one."""
        return self._steps / self._active_seconds if self._active_seconds else 0.0


class ProgressLine(str):
    """A log line about the progress of a stage, which a Console shows as a bar.

    Attributes:
      note: what the line says; stage: its name; done, total: steps taken and planned.
    """

    note: str
    stage: str
    done: int
    total: int

    def __new__(cls, note: str, *, stage: str, done: int, total: int) -> "ProgressLine":
        line = super().__new__(cls, f"{stage}  step {done}/{total}  {note}")
        line.note, line.stage, line.done, line.total = note, stage, done, total
        return line


def _is_terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


class Console:
    """Prints lines. On a terminal, progress lines move one bar per stage instead."""

    def __init__(self):
        self._bar: _Bar | None = None

    def __call__(self, line: str) -> None:
        if isinstance(line, ProgressLine) and _is_terminal():
            self._move(line)
        elif self._bar:
            self._bar.write(line)  # above the bar
        else:
            print(line, flush=True)

    def _move(self, line: ProgressLine) -> None:
        if self._bar is None:
            self._bar = _Bar(total=line.total, bar_format=_TRAINING_BAR)
        self._bar.set_description_str(line.stage, refresh=False)
        self._bar.set_postfix_str(line.note, refresh=False)
        self._bar.n = line.done
        self._bar.refresh()
        if line.done == line.total:
            self.close()

    def close(self) -> None:
        """Leaves the bar as it is; what is printed next starts on a line of its own."""
        if self._bar:
            self._bar.close()
            self._bar = None


class ProgressBar:
    """Progress of counted work: a bar on a terminal, otherwise a log line every few seconds.

    Args:
      say: writes a line to the log.
      title: name of the work.
    """

    def __init__(self, say: Callable[[str], None], title: str):
        self._say, self._title = say, title
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Reports that `done` of `total` items are complete."""
        if self._bar is None:
            self._bar = self._open(done, total)
        if done < total:
            self._bar.update(done - self._bar.n)
        else:
            self._bar.n = done
            self._bar.close()

    def _open(self, done: int, total: int) -> tqdm:
        settings = {
            "desc": self._title,
            "total": total,
            "initial": done,
            "smoothing": 0,
            "unit": "",
        }
        if sys.stderr.isatty():
            return _Bar(**settings)
        return _Bar(
            **settings,
            file=_LogStream(self._say),
            mininterval=_LINE_INTERVAL,
            miniters=1,
            bar_format="{desc}  {n_fmt}/{total_fmt}  {rate_fmt}, {remaining} left",
        )


class _Bar(tqdm):
    monitor_interval = 0  # no monitoring thread


class _LogStream:
    """File-like object that passes what tqdm writes to a log, line by line."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def write(self, text: str) -> None:
        if line := text.strip():
            self._say(line)

    def flush(self) -> None:
        pass


def duration(seconds: float) -> str:
    """Formats a duration: "45 s", "3.2 min" or "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
