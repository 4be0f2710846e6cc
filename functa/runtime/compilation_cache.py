"""The cache of compiled programs, which later commands reuse."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
    """Directory of files that can be made again: functa below XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    return pathlib.Path(home) / "functa"


def use_compilation_cache(workdir: str = "") -> None:
    """Caches compiled programs in the cache directory, unless JAX_COMPILATION_CACHE_DIR is set.

    Args:
      workdir: of the run. In an object store it holds the cache too: the disk of a TPU that was
        preempted is lost.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax

    directory = f"{workdir}/xla" if "://" in workdir else str(cache_directory() / "xla")
    jax.config.update("jax_compilation_cache_dir", directory)
