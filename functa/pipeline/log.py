"""log.txt of a run."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from etils import epath

from functa.runtime import storage

_UPLOAD_SECONDS = 10.0  # between uploads to an object store


@contextlib.contextmanager
def log_file(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Yields a function that calls `say` and also writes to log.txt, with the time before every line.

    Warnings of the logger `functa` and an exception that ends the run are written too.
    """
    log = _Log(workdir / "log.txt")

    def say_and_write(line: str) -> None:
        say(line)
        log.write(line)

    logging.getLogger("functa").addHandler(log)
    try:
        yield say_and_write
    except BaseException as error:
        log.write(f"stopped by {type(error).__name__}: {error}")
        raise
    finally:
        logging.getLogger("functa").removeHandler(log)
        log.upload()


class _Log(logging.Handler):
    """A log file. Objects cannot be appended to, so the whole log is uploaded from time to time."""

    def __init__(self, path: epath.Path):
        super().__init__(logging.WARNING)
        self._path, self._remote = path, storage.is_remote(path)
        self._text = path.read_text() if self._remote and path.exists() else ""
        self._uploaded = 0.0

    def write(self, line: str, *, upload: bool = True) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n"
        if self._remote:
            self._text += line
            if upload and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
                self.upload()
        else:
            with open(self._path, "a") as file:
                file.write(line)

    def upload(self) -> None:
        if self._remote:
            self._path.write_text(self._text)
            self._uploaded = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        # The warning may come from the code that writes to the store, so nothing is uploaded here.
        self.write(f"{record.levelname}: {record.getMessage()}", upload=False)
