"""log.txt of a run."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import IO

from etils import epath

from functa.runtime import storage

_UPLOAD_SECONDS = 10.0  # between uploads to an object store


@contextlib.contextmanager
def log_file(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yields a function that calls `say` and also writes to log.txt, with the time before every line.

    Warnings of the logger `functa` and an exception that ends the run are written too.
    """
    path = workdir / "log.txt"
    remote = storage.is_remote(path)
    lines = [path.read_text()] if remote and path.exists() else []
    with contextlib.nullcontext() if remote else open(path, "a", buffering=1) as file:
        uploaded = 0.0

        def upload() -> None:
            nonlocal uploaded
            path.write_text("".join(lines))
            uploaded = time.monotonic()

        def write(line: str) -> None:
            line = _with_time(line)
            if file is not None:
                file.write(line)
                return
            # Objects cannot be appended to, so the whole log is written from time to time.
            lines.append(line)
            if time.monotonic() - uploaded > _UPLOAD_SECONDS:
                upload()

        def say_and_write(line: str) -> None:
            say(line)
            write(line)

        handler = _LogHandler(file, lines)
        logging.getLogger("functa").addHandler(handler)
        try:
            yield say_and_write
        except BaseException as error:
            write(f"stopped by {type(error).__name__}: {error}")
            raise
        finally:
            logging.getLogger("functa").removeHandler(handler)
            if remote:
                upload()


def _with_time(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n"


class _LogHandler(logging.Handler):
    """Writes warnings to the log file, or for an object store adds them to the next upload.

    It must not upload by itself: the warning may come from the code that writes to the store.
    """

    def __init__(self, file: IO[str] | None, lines: list[str]):
        super().__init__(logging.WARNING)
        self._file, self._lines = file, lines

    def emit(self, record: logging.LogRecord) -> None:
        line = _with_time(f"{record.levelname}: {record.getMessage()}")
        if self._file is not None:
            self._file.write(line)
        else:
            self._lines.append(line)
