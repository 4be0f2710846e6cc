"""gs:// that is away for a while: every request is tried again, told, and given up after a defined time.

gcsfs itself tries six times in half a minute and tells nothing. TensorStore, which Orbax moves arrays
with, tries by itself for longer than is waited here.
"""

import asyncio
import logging
import random
import time
from typing import Any

import gcsfs
from gcsfs import core, retry

from functa.runtime.errors import StorageUnavailableError

_AWAY_SECONDS = 600.0
# Seconds between two tries: who renews a lock must be back before others take it for dead (workdir.py).
_LONGEST_PAUSE = 10.0

_log = logging.getLogger("functa")
# One try; gcsfs wraps it in its own.
_once = core.GCSFileSystem._request.__wrapped__


class StoreFileSystem(gcsfs.GCSFileSystem):
    """What fsspec, and so etils' epath, takes for gs:// (disk.py)."""

    _away_since: float | None = None

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any):
        pause = 0.5
        while True:
            try:
                answer = await _once(self, method, path, *args, **kwargs)
            except Exception as error:
                # TimeoutError: aiohttp's, of a store that takes requests and answers none.
                if not (retry.is_retriable(error) or isinstance(error, TimeoutError)):
                    raise
                self._told_away(error)
            else:
                self._told_back()
                return answer
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _told_away(self, error: Exception) -> None:
        code = getattr(error, "code", None)
        why = (
            f"status {code}" if code else f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
        )
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.warning("gs:// does not answer (%s): trying for %.0f s", why, _AWAY_SECONDS)
        away = time.monotonic() - self._away_since
        if away > _AWAY_SECONDS:
            raise StorageUnavailableError(
                f"gs:// has not answered for {away:.0f} s ({why}); once it does, the same command goes on from "
                "what is saved there"
            )

    def _told_back(self) -> None:
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            self._away_since = None
            _log.warning("gs:// answers again, after %.0f s", away)
