"""Checks of a run directory: it can be written to, and all processes share it."""

import os
import time
from typing import Any

from etils import epath

from functa.runtime import config as config_lib
from functa.runtime import storage
from functa.runtime.errors import StorageUnavailableError

STAGES = ("meta_learn", "encode", "classify", "generate")  # names of their directories, in order
_VISIBLE_SECONDS = 10.0  # network file systems may cache for a while that a file does not exist


def problems(workdir: epath.Path) -> list[str]:
    """Why a run directory cannot be written to, as far as can be told without writing."""
    if storage.is_remote(workdir):
        return _remote_problems(workdir)
    existing = workdir.resolve()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [f"--workdir={workdir}: {existing} is not a writable directory"]
    return []


def _remote_problems(workdir: epath.Path) -> list[str]:
    scheme, _, rest = str(workdir).partition("://")
    if scheme != "gs":
        return [f"--workdir={workdir}: gs:// is the only supported object store"]
    bucket = epath.Path(f"gs://{rest.split('/')[0]}")
    try:
        if "/" in rest and bucket.exists():
            return []
    except StorageUnavailableError:
        raise  # not a mistake of the user
    except Exception as error:  # gcsfs has a dozen types for credentials and network
        return [
            f"--workdir={workdir}: {bucket} cannot be reached ({type(error).__name__}: {error})"
        ]
    return [f"--workdir={workdir} must be gs://BUCKET/FOLDER, and the bucket must exist"]


def sharing_problems(workdir: epath.Path, settings: dict[str, Any]) -> list[str]:
    """Reports that this process does not see the config that process 0 has just written.

    Args:
      settings: `shared_settings` of the config.
    """
    path = workdir / "config.json"
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return [
                f"{path}, written by process 0, does not exist: all processes must share --workdir"
            ]
        time.sleep(0.5)
    if config_lib.shared_settings(config_lib.load(workdir)) != settings:
        return [
            f"{path} is not the file that process 0 has written: all processes must share --workdir"
        ]
    return []
