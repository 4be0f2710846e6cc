"""Google Cloud Storage file system that retries requests for ten minutes and logs outages.

gcsfs retries for half a minute without a message; neither can be configured. TensorStore, which
Orbax uses for arrays, retries on its own for longer.
"""

import asyncio
import logging
import random
import time
from typing import Any

import gcsfs
from gcsfs import core, retry

from functa.runtime.errors import StorageUnavailableError

_RETRY_SECONDS = 600.0
# Below the expiry of a lock (pipeline/locks.py): its owner must renew it soon after an outage.
_MAX_PAUSE_SECONDS = 10.0

_log = logging.getLogger("functa")
# One attempt, without the retries of gcsfs. Can go once gcsfs makes the number of retries a setting.
_request_once = core.GCSFileSystem._request.__wrapped__


class RetryingFileSystem(gcsfs.GCSFileSystem):
    """The fsspec file system of gs:// paths, registered in runtime/storage.py."""

    _outage_start: float | None = None

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any):
        pause = 0.5
        while True:
            try:
                response = await _request_once(self, method, path, *args, **kwargs)
            except Exception as error:
                # aiohttp raises TimeoutError if the store accepts a request and does not answer.
                if not (retry.is_retriable(error) or isinstance(error, TimeoutError)):
                    raise
                self._on_failure(error)
            else:
                self._on_success()
                return response
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _on_failure(self, error: Exception) -> None:
        code = getattr(error, "code", None)
        first_line = str(error).split("\n")[0]
        cause = f"status {code}" if code else f"{type(error).__name__}: {first_line}"
        if self._outage_start is None:
            self._outage_start = time.monotonic()
            _log.warning("gs:// does not answer (%s): retrying for %.0f s", cause, _RETRY_SECONDS)
        seconds = time.monotonic() - self._outage_start
        if seconds > _RETRY_SECONDS:
            raise StorageUnavailableError(
                f"gs:// has not answered for {seconds:.0f} s ({cause}); run the same command when it is "
                "available again, to resume from what is saved there"
            )

    def _on_success(self) -> None:
        if self._outage_start is not None:
            seconds = time.monotonic() - self._outage_start
            self._outage_start = None
            _log.warning("gs:// answers again, after %.0f s", seconds)
